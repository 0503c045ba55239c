// The batch: a lane per running sequence, coloured by its adapter. Rows of text, and one canvas behind them for time.

import { colour, onScheme, swatch } from "./colours.js";
import { count, element, seconds } from "./format.js";
import { ROW, Rows } from "./lane_rows.js";
import { Track, WINDOW_SECONDS } from "./lane_tracks.js";

const MOST_LANES = 128;
const BAR = 14;
const BEHIND_SECONDS = 0.3; // what is drawn, so that the next frame is there before it is needed
const calm = matchMedia("(prefers-reduced-motion: reduce)");

export class Lanes {
  constructor(body, none) {
    Object.assign(this, { body, none, canvas: body.querySelector("canvas"), moving: true });
    this.clear();
    onScheme(() => this.draw());
    new ResizeObserver(() => this.draw()).observe(body);
    const tick = () => {
      if (this.moving && !calm.matches && !document.hidden && this.tracks.size) this.draw();
      setTimeout(() => requestAnimationFrame(tick), 40);
    };
    tick();
  }

  clear() {
    this.tracks = new Map(); // id -> Track
    this.rows = new Rows();
    this.at = null;
    for (const row of this.body.querySelectorAll(".lane")) row.remove();
    this.draw();
  }

  show(frame) {
    const before = this.at ?? 0; // the first frame tells of steps before it, too
    const steps = frame.steps.map((step) => step[1]);
    this.at = frame.at;
    this.arrived = performance.now();
    const alive = new Set();
    for (const lane of frame.lanes.slice(0, MOST_LANES)) {
      alive.add(lane.id);
      if (!this.tracks.has(lane.id)) this.begin(this.track(lane, frame, before));
      this.tracks.get(lane.id).take(lane, frame.at, steps);
    }
    for (const [id, track] of this.tracks) {
      if (!alive.has(id)) track.ended ??= frame.at;
    }
    this.rows.expire(frame.at);
    this.arrange();
    this.none.hidden = this.tracks.size > 0;
    this.draw();
  }

  track(lane, frame, before) {
    const arrived = frame.at - lane.age;
    const track = new Track(lane, arrived, Math.max(arrived, before));
    const rank = frame.adapters.find((adapter) => adapter.key === lane.key)?.rank;
    track.rank = rank ? `r${rank}` : "";
    return track;
  }

  begin(track) {
    this.tracks.set(track.lane.id, track);
    this.rows.add(track);
    const { lane } = track;
    const name = element("span", "lane-name", swatch(lane.key), element("span", "", lane.model), element("span", "rank", track.rank));
    name.title = lane.tenant ? `${lane.model}, asked by ${lane.tenant}` : lane.model;
    track.figures = Array.from({ length: 4 }, () => element("span", "number"));
    track.row = element("div", "lane", name, element("span"), ...track.figures);
    this.body.append(track.row);
  }

  arrange() {
    const placed = new Set();
    for (const [track, y, isFirst] of this.rows.placed()) {
      placed.add(track);
      track.y = y;
      track.row.style.transform = `translateY(${y}px)`;
      track.row.classList.toggle("follows", !isFirst);
      track.row.classList.toggle("ended", track.ended !== null);
      const { lane } = track;
      const isReading = lane.computed < lane.prompt;
      const told = [isReading ? `${count(lane.computed)}/${count(lane.prompt)}` : count(lane.prompt), count(lane.generated), count(lane.pages), seconds(lane.age)];
      track.figures.forEach((cell, index) => (cell.textContent = told[index]));
    }
    for (const [id, track] of this.tracks) {
      if (placed.has(track)) continue;
      track.row.remove();
      this.tracks.delete(id);
    }
    this.body.style.height = `${Math.max(this.rows.height, 0)}px`;
  }

  now() {
    if (!this.moving || calm.matches) return this.at;
    return this.at - BEHIND_SECONDS + Math.min((performance.now() - this.arrived) / 1000, 2 * BEHIND_SECONDS);
  }

  draw() {
    const width = this.canvas.clientWidth;
    const height = this.rows.height;
    const scale = devicePixelRatio;
    if (this.canvas.width !== Math.round(width * scale) || this.canvas.height !== Math.round(height * scale)) {
      this.canvas.width = Math.round(width * scale);
      this.canvas.height = Math.round(height * scale);
    }
    this.canvas.style.height = `${height}px`;
    if (!width || this.at === null) return;
    const context = this.canvas.getContext("2d");
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    const now = this.now();
    const x = (at) => Math.max(width * (1 - (now - at) / WINDOW_SECONDS), -2);
    for (const track of this.tracks.values()) drawTrack(context, track, x, Math.min(now, this.at));
  }
}

function drawTrack(context, track, x, now) {
  const top = track.y + (ROW - BAR) / 2;
  const { key } = track.lane;
  const from = x(track.began);
  const end = x(Math.min(track.seen, now));
  if (end <= 0) return;
  context.globalAlpha = track.ended === null ? 1 : 0.5;
  context.fillStyle = colour(key, 0.6);
  context.fillRect(x(track.arrived), top + BAR / 2 - 0.5, from - x(track.arrived), 1);
  context.fillStyle = colour(key, 0.17);
  context.fillRect(from, top, end - from, BAR);
  for (const [start, stop] of track.prefills) drawHatch(context, x(start), Math.min(x(stop), end), top, key);
  context.fillStyle = colour(key);
  for (const tick of track.ticks) if (tick <= now) context.fillRect(x(tick) - 1.5, top, 1.5, BAR);
  context.globalAlpha = 1;
}

function drawHatch(context, from, to, top, key) {
  if (to <= 0 || to < from) return;
  from = Math.min(from, to - 6); // a short one is to be seen, too
  context.save();
  context.beginPath();
  context.rect(from, top, to - from, BAR);
  context.clip();
  context.fillStyle = colour(key, 0.3);
  context.fillRect(from, top, to - from, BAR);
  context.strokeStyle = colour(key);
  context.lineWidth = 1.5;
  context.beginPath();
  for (let at = from - BAR; at < to + BAR; at += 5) {
    context.moveTo(at, top + BAR);
    context.lineTo(at + BAR, top);
  }
  context.stroke();
  context.restore();
}
