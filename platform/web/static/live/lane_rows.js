// Which row each sequence stands in: those of one adapter together. A row keeps its order while its sequence lives, and
// stays a while after its end, so that eyes can follow.

const STAY_SECONDS = 2.5;

export const ROW = 24;
export const GAP = 9;

export class Rows {
  constructor() {
    this.groups = []; // {name, key, tracks}
  }

  add(track) {
    const { model, key } = track.lane;
    let group = this.groups.find((one) => one.name === model);
    if (!group) {
      group = { name: model, key, tracks: [] };
      const beside = this.groups.findLastIndex((one) => one.key === key);
      this.groups.splice(beside < 0 ? this.groups.length : beside + 1, 0, group);
    }
    const free = group.tracks.findIndex((one) => one.ended !== null);
    if (free < 0) group.tracks.push(track);
    else group.tracks[free] = track;
    return free;
  }

  expire(now) {
    for (const group of this.groups) {
      group.tracks = group.tracks.filter((track) => track.ended === null || now - track.ended < STAY_SECONDS);
    }
    this.groups = this.groups.filter((group) => group.tracks.length);
  }

  // [track, y, whether it is the first of its group]
  *placed() {
    let y = 0;
    for (const group of this.groups) {
      for (const [index, track] of group.tracks.entries()) {
        yield [track, y, index === 0];
        y += ROW;
      }
      y += GAP;
    }
  }

  get height() {
    return this.groups.reduce((height, group) => height + group.tracks.length * ROW + GAP, 0);
  }
}
