// Who waits, for what, and how long already. The counter is shown where the scheduler keeps one.

import { swatch } from "./colours.js";
import { count, element, seconds } from "./format.js";

export class Queues {
  constructor(table, none, summary) {
    Object.assign(this, { frame: table.parentElement, none, summary, body: table.querySelector("tbody"), head: table.querySelector(".counter") });
  }

  clear() {
    this.body.replaceChildren();
    this.summary.textContent = "";
    this.toggle(false);
  }

  show(frame) {
    const waiting = frame.queues.reduce((sum, queue) => sum + queue.waiting, 0);
    const all = frame.totals?.waiting ?? waiting;
    const hasCounter = frame.queues.some((queue) => queue.counter !== null);
    this.head.hidden = !hasCounter;
    this.summary.textContent = all ? `${count(all)} wait${all > waiting ? `, ${count(all - waiting)} of them not listed` : ""}` : "";
    this.toggle(all > 0);
    this.body.replaceChildren(...frame.queues.map((queue) => row(queue, hasCounter)));
  }

  toggle(isFull) {
    this.frame.hidden = !isFull;
    this.none.hidden = isFull;
  }
}

function row(queue, hasCounter) {
  const made = element(
    "tr",
    "",
    element("td", "", queue.tenant || "server"),
    element("td", "", swatch(queue.key), ` ${queue.model}`),
    element("td", "right number", count(queue.waiting)),
    element("td", "right number", seconds(queue.oldest)),
  );
  if (hasCounter) made.append(element("td", "right number", queue.counter === null ? "" : count(queue.counter)));
  return made;
}
