// The few numbers of now, and the figures of each frame that the charts draw.

import { count, ms, percent } from "./format.js";

const MEAN_SECONDS = 2;
const [AT, SCHEDULE, EXECUTE, COMMIT, SEQUENCES, PREFILL, DECODES, ADAPTERS] = [1, 2, 3, 4, 5, 6, 7, 8];
const [DRAFTED, ACCEPTED] = [11, 12];

const sum = (steps, field) => steps.reduce((total, step) => total + step[field], 0);

// Of the frame that follows another one; what a tenant is not told is null.
export function figures(frame, before) {
  const passed = before ? Math.max(frame.at - before.at, 0.05) : 1;
  const steps = frame.steps.filter((step) => before || step[AT] > frame.at - 1); // the first frame tells of more
  const mean = (field) => (steps.length ? sum(steps, field) / steps.length : null);
  const held = frame.totals ? frame.totals.pages_used : frame.lanes.reduce((total, lane) => total + lane.pages, 0);
  const own = frame.totals ? null : progress(frame, before);
  return {
    schedule: mean(SCHEDULE),
    execute: mean(EXECUTE),
    commit: mean(COMMIT),
    sequences: mean(SEQUENCES) ?? frame.lanes.length,
    adapters: frame.totals ? (mean(ADAPTERS) ?? 0) : null,
    read: (own ? own.read : sum(steps, PREFILL)) / passed,
    written: (own ? own.written : sum(steps, DECODES) - sum(steps, DRAFTED) + sum(steps, ACCEPTED)) / passed,
    pages: (100 * held) / frame.bounds.pages,
  };
}

function progress(frame, before) {
  const known = new Map(before?.lanes.map((lane) => [lane.id, lane]));
  let [read, written] = [0, 0];
  for (const lane of frame.lanes) {
    const last = known.get(lane.id);
    read += Math.min(lane.computed, lane.prompt) - Math.min(last?.computed ?? lane.cached, lane.prompt);
    written += lane.generated - (last?.generated ?? 0);
  }
  return { read, written };
}

export class Strip {
  constructor(root) {
    this.cells = new Map([...root.querySelectorAll("[data-figure]")].map((cell) => [cell.dataset.figure, cell]));
    this.clear();
  }

  clear() {
    this.recent = [];
    for (const cell of this.cells.values()) cell.textContent = "–";
  }

  show(frame, now) {
    this.recent.push({ at: frame.at, ...now });
    this.recent = this.recent.filter((one) => one.at > frame.at - MEAN_SECONDS);
    const mean = (name) => {
      const known = this.recent.map((one) => one[name]).filter((value) => value !== null);
      return known.length ? known.reduce((total, value) => total + value, 0) / known.length : null;
    };
    const step = mean("execute");
    this.write("running", `${count(frame.totals?.running ?? frame.lanes.length)}`, `of ${count(frame.bounds.sequences)}`);
    this.write("waiting", count(frame.totals?.waiting ?? frame.queues.reduce((total, queue) => total + queue.waiting, 0)));
    this.write("tokens", count(mean("written") ?? 0), "per second");
    this.write("step", step === null ? "–" : ms(step + mean("schedule") + mean("commit")));
    this.write("adapters", step === null ? "–" : (mean("adapters") ?? 0).toFixed(1));
    this.write("pages", percent(now.pages, 100));
  }

  write(name, text, unit) {
    const cell = this.cells.get(name);
    if (!cell) return;
    cell.textContent = text;
    if (unit) cell.append(Object.assign(document.createElement("small"), { textContent: ` ${unit}` }));
  }
}
