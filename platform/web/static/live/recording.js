// Recordings: frames as they came, in a file that says what it is. docs/live.md has the format.

const FORMAT = "loraplex-live";
const VERSION = 1;
const MOST_BYTES = 256 << 20;
const MOST_FRAMES = 20000;

export const RECORD_SECONDS = 60;

export class Recorder {
  // onTick: the seconds that are left; onEnd: it is saved.
  constructor(onTick, onEnd) {
    Object.assign(this, { onTick, onEnd, frames: null });
  }

  get isRecording() {
    return this.frames !== null;
  }

  start() {
    this.frames = [];
  }

  take(frame) {
    if (!this.isRecording) return;
    this.frames.push(frame);
    const passed = frame.at - this.frames[0].at;
    if (passed >= RECORD_SECONDS) this.finish();
    else this.onTick(Math.ceil(RECORD_SECONDS - passed));
  }

  finish() {
    const frames = this.frames;
    this.frames = null;
    if (frames.length) save(frames);
    this.onEnd(frames.length);
  }
}

function save(frames) {
  const text = JSON.stringify({ format: FORMAT, version: VERSION, frames });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  const moment = new Date(frames[0].at * 1000).toISOString().slice(0, 19).replaceAll(":", "-");
  link.download = `loraplex-live-${moment}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// The frames of a file, or an Error that says what is wrong with it.
export async function open(file) {
  if (file.size > MOST_BYTES) throw new Error(`${file.name} is larger than any recording.`);
  let recording;
  try {
    recording = JSON.parse(await file.text());
  } catch {
    throw new Error(`${file.name} is not JSON.`);
  }
  if (recording?.format !== FORMAT) throw new Error(`${file.name} is not a recording of the live engine.`);
  if (recording.version !== VERSION) {
    throw new Error(`${file.name} has version ${recording.version} of the format; this page reads ${VERSION}.`);
  }
  const { frames } = recording;
  if (!Array.isArray(frames) || !frames.length || frames.length > MOST_FRAMES || !frames.every(isFrame)) {
    throw new Error(`${file.name} holds no frames that can be shown.`);
  }
  return frames;
}

const LISTS = ["lanes", "queues", "cells", "adapters", "steps", "events"];
const isFrame = (frame, index, all) =>
  Number.isFinite(frame?.at) &&
  (index === 0 || frame.at >= all[index - 1].at) &&
  Number.isFinite(frame.bounds?.pages) &&
  LISTS.every((name) => Array.isArray(frame[name]));
