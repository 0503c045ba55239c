// A recording in time: play, stop, go to any place. Shows the frames up to there, as if they had just come.

const LEAD_SECONDS = 60; // what the charts show

export class Player {
  // onFrame: of each frame, in order; onClear: before frames that do not follow the last one; onPlace: seconds from 0.
  constructor(frames, { onFrame, onClear, onPlace }) {
    Object.assign(this, { frames, onFrame, onClear, onPlace, next: 0, place: 0, timer: null, shown: null });
    this.length = frames.at(-1).at - frames[0].at;
  }

  get isPlaying() {
    return this.timer !== null;
  }

  play() {
    if (this.place >= this.length) this.seek(0);
    let last = performance.now();
    this.timer = setInterval(() => {
      const now = performance.now();
      this.advance(this.place + (now - last) / 1000);
      last = now;
    }, 50);
  }

  stop() {
    clearInterval(this.timer);
    this.timer = null;
  }

  seek(place) {
    this.onClear();
    const from = this.frames[0].at + place - LEAD_SECONDS;
    this.next = Math.max(this.frames.findIndex((frame) => frame.at >= from), 0);
    this.advance(place);
  }

  advance(place) {
    this.place = Math.min(place, this.length);
    const until = this.frames[0].at + this.place;
    while (this.next < this.frames.length && this.frames[this.next].at <= until) this.onFrame(this.frames[this.next++]);
    if (this.place >= this.length) this.stop();
    this.onPlace(this.place);
  }
}
