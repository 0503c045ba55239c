// What is known of each sequence's way through time: when its prompt was read, when its tokens came. Frames tell only how
// far a sequence is; the steps between two frames tell when.

export const WINDOW_SECONDS = 16;

export class Track {
  // arrived: when it began to wait; began: when it began to run.
  constructor(lane, arrived, began) {
    Object.assign(this, { lane, arrived, began, seen: began, ended: null, prefills: [], ticks: [] });
  }

  // steps: the moments at which steps have ended since the frame before.
  take(lane, at, steps) {
    const last = this.lane === lane ? null : this.lane;
    const before = this.seen;
    const read = Math.min(lane.computed, lane.prompt) - Math.min(last?.computed ?? lane.cached, lane.prompt);
    const written = lane.generated - (last?.generated ?? 0);
    const ticks = moments(written, before, at, steps);
    if (read > 0) this.prefills.push([before, ticks[0] ?? at]);
    this.ticks.push(...ticks);
    this.lane = lane;
    this.seen = at;
    const old = at - WINDOW_SECONDS - 1;
    while (this.ticks.length && this.ticks[0] < old) this.ticks.shift();
    while (this.prefills.length && this.prefills[0][1] < old) this.prefills.shift();
  }
}

// A token per step, in the last steps; where there are more tokens than steps, they are spread evenly.
function moments(tokens, before, at, steps) {
  if (tokens <= steps.length) return steps.slice(steps.length - tokens);
  return Array.from({ length: Math.min(tokens, 512) }, (_, index) => before + ((index + 1) / tokens) * (at - before));
}
