// The lanes once more as a table, for whoever would rather read: written only while it is open, once a second.

import { count, element, seconds } from "./format.js";

const EVERY_MS = 1000;

export class LanesTable {
  constructor(details) {
    Object.assign(this, { details, body: details.querySelector("tbody"), written: 0, frame: null });
    details.addEventListener("toggle", () => this.frame && this.write());
  }

  clear() {
    this.frame = null;
    this.body.replaceChildren();
  }

  show(frame) {
    this.frame = frame;
    if (this.details.open && performance.now() - this.written >= EVERY_MS) this.write();
  }

  write() {
    this.written = performance.now();
    this.body.replaceChildren(...this.frame.lanes.map(row));
  }
}

function row(lane) {
  const state = lane.computed < lane.prompt ? "reads its prompt" : "writes";
  const texts = [lane.tenant || "server", lane.model, state];
  const numbers = [count(lane.prompt), count(lane.cached), count(lane.generated), count(lane.pages), seconds(lane.age)];
  return element(
    "tr",
    "",
    ...texts.map((text) => element("td", "", text)),
    ...numbers.map((text) => element("td", "right number", text)),
  );
}
