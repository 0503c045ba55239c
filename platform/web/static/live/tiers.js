// Adapters where they are, and an arrow for a while where one came or went.

import { swatch } from "./colours.js";
import { bytes, element, ms } from "./format.js";

const ARROW_SECONDS = 6;

export class Tiers {
  constructor(root) {
    this.columns = new Map([...root.querySelectorAll(".tier")].map((column) => [column.dataset.tier, column]));
    this.clear();
  }

  clear() {
    this.arrows = new Map(); // key -> {at, text, kind}
    this.written = new Map(); // tier -> what it shows, so that what has not changed stays
    for (const tier of this.columns.keys()) this.fill(tier, [], 0);
  }

  show(frame) {
    for (const event of frame.events) {
      if (event.kind === "load") this.arrows.set(event.key, { at: event.at, kind: "came", text: `↑ ${event.ms ? ms(event.ms.total) : ""}` });
      if (event.kind === "eviction") this.arrows.set(event.key, { at: event.at, kind: "went", text: "↓" });
    }
    for (const [key, arrow] of this.arrows) if (frame.at - arrow.at > ARROW_SECONDS) this.arrows.delete(key);
    const { bounds, totals } = frame;
    const device = frame.adapters.filter((adapter) => adapter.tier === "device" || adapter.tier === "loading");
    device.sort((a, b) => b.leases - a.leases || (a.names[0] ?? "").localeCompare(b.names[0] ?? ""));
    this.fill("device", device, totals?.adapters_on_device ?? device.length, totals && `${bytes(totals.device_bytes)} of ${bytes(bounds.device_bytes)}`);
    const host = frame.adapters.filter((adapter) => adapter.tier === "host");
    this.fill("host", host, Math.max((totals?.adapters_in_host ?? 0) - device.filter((one) => one.host_bytes).length, host.length), totals && `${bytes(totals.host_bytes)} of ${bytes(bounds.host_bytes)}`);
  }

  fill(tier, adapters, number, room) {
    const column = this.columns.get(tier);
    if (!column) return;
    column.querySelector("h3 .number").textContent = room ? `${number}, ${room}` : number ? `${number}` : "";
    const facts = adapters.map((adapter) => [adapter, this.arrows.get(adapter.key)]);
    const now = JSON.stringify(facts.map(([a, arrow]) => [a.key, a.names, a.tier, a.leases, a.pins, arrow]));
    if (this.written.get(tier) === now) return;
    this.written.set(tier, now);
    const chips = facts.map(([adapter, arrow]) => chip(adapter, arrow));
    if (number > adapters.length) chips.push(element("li", "more muted", `and ${number - adapters.length} more`));
    if (!number) chips.push(element("li", "more muted", tier === "device" ? "None is loaded." : "None beside those on the device."));
    column.querySelector("ul").replaceChildren(...chips);
  }
}

function chip(adapter, arrow) {
  const others = adapter.names.length > 1 ? ` and ${adapter.names.length - 1} more with the same bytes` : "";
  const made = element("li", "adapter-chip", swatch(adapter.key), element("span", "chip-name", adapter.names[0] ?? adapter.key));
  made.title = [
    (adapter.names[0] ?? adapter.key) + others,
    adapter.device_bytes ? bytes(adapter.device_bytes) : adapter.host_bytes ? bytes(adapter.host_bytes) : "",
    adapter.loads ? `${adapter.loads} loads` : "",
    adapter.load_ms ? `last load ${ms(adapter.load_ms.total)}: read ${ms(adapter.load_ms.read)}, copy ${ms(adapter.load_ms.copy)}` : "",
  ].filter(Boolean).join("\n");
  if (adapter.rank !== null) made.append(element("span", "muted number", `r${adapter.rank}`));
  if (adapter.pins) made.append(element("span", "tag", "pinned"));
  if (adapter.tier === "loading") made.append(element("span", "tag", "loading"));
  if (adapter.leases) made.append(element("span", "uses number", `${adapter.leases} running`));
  if (arrow) made.append(element("span", `arrow number ${arrow.kind}`, arrow.text));
  return made;
}
