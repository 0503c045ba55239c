// What has happened: loads, evictions, preemptions, and what became of the engine.

import { swatch } from "./colours.js";
import { clock, element, ms } from "./format.js";

const MOST = 80;

export class Events {
  constructor(list, none) {
    Object.assign(this, { list, none });
  }

  clear() {
    this.list.replaceChildren();
    this.none.hidden = false;
  }

  show(frame) {
    if (!frame.events.length) return;
    this.list.prepend(...frame.events.map(entry).reverse());
    while (this.list.children.length > MOST) this.list.lastChild.remove();
    this.none.hidden = true;
  }
}

function entry(event) {
  const time = element("time", "muted number", clock(event.at));
  return element("li", event.kind, time, element("span", "event-kind", KINDS[event.kind] ?? event.kind), ...told(event));
}

const KINDS = { load: "↑ load", eviction: "↓ eviction", preemption: "preemption", restart: "engine is up", down: "engine is down" };

function told(event) {
  if (event.kind === "preemption") return [`${event.count} gave ${event.count === 1 ? "its" : "their"} pages back`];
  if (!event.key) return [];
  const name = element("span", "", swatch(event.key), ` ${event.name}`);
  if (!event.ms) return [name];
  const from = event.ms.read ? `read ${ms(event.ms.read)}, ` : "from host memory, ";
  return [name, element("span", "muted number", `${ms(event.ms.total)}: ${from}copied in ${ms(event.ms.copy)}`)];
}
