// The KV cache, a cell per page (or per so many, where there are more than fit): who holds it, and what is free.

import { colour, onScheme } from "./colours.js";
import { count, percent } from "./format.js";

const SIZES = [14, 12, 10, 9, 8, 7, 6, 5, 4, 3, 2];
const MOST_HEIGHT = 190;
const MOST_CELLS = 8192;
const FREE = 0;
const CACHED = 1;

export class PageMap {
  constructor(canvas, summary, hover) {
    Object.assign(this, { canvas, summary, hover, frame: null, cells: [] });
    onScheme(() => this.draw());
    new ResizeObserver(() => this.draw()).observe(canvas);
    canvas.addEventListener("pointermove", (event) => this.point(event));
    canvas.addEventListener("pointerleave", () => (this.hover.textContent = "\u00a0"));
  }

  clear() {
    this.frame = null;
    this.cells = [];
    this.summary.textContent = "";
    this.draw();
  }

  show(frame) {
    this.frame = frame;
    this.cells = [];
    for (let run = 0; run < frame.cells.length; run += 2) {
      const room = MOST_CELLS - this.cells.length; // a recording may say anything
      for (let left = Math.min(frame.cells[run + 1], room); left > 0; left--) this.cells.push(frame.cells[run]);
    }
    const { bounds, totals, others } = frame;
    if (totals) {
      const kept = totals.pages_cached ? `, ${count(totals.pages_cached)} kept for their prefixes` : "";
      this.summary.textContent = `${count(totals.pages_used)} of ${count(bounds.pages)} pages held${kept}; ${bounds.page_tokens} tokens each`;
    } else {
      const own = frame.lanes.reduce((sum, lane) => sum + lane.pages, 0);
      const rest = others?.pages ? `; others hold up to ${percent(others.pages, 4)}` : "";
      this.summary.textContent = `${count(own)} of ${count(bounds.pages)} pages held by you${rest}`;
    }
    this.draw();
  }

  layout() {
    const width = this.canvas.clientWidth;
    const size = SIZES.find((one) => Math.ceil(this.cells.length / Math.floor(width / one)) * one <= MOST_HEIGHT) ?? 2;
    return { width, size, columns: Math.max(Math.floor(width / size), 1) };
  }

  draw() {
    const { width, size, columns } = this.layout();
    const height = Math.max(Math.ceil(this.cells.length / columns) * size, size);
    const scale = devicePixelRatio;
    this.canvas.style.height = `${height}px`;
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    const context = this.canvas.getContext("2d");
    context.scale(scale, scale);
    const style = getComputedStyle(this.canvas);
    const paper = style.getPropertyValue("--surface");
    const side = size - (size > 3 ? 1 : 0);
    this.cells.forEach((cell, index) => {
      const left = (index % columns) * size;
      const top = Math.floor(index / columns) * size;
      context.fillStyle = cell > CACHED ? colour(this.key(cell)) : style.getPropertyValue("--sunken");
      context.fillRect(left, top, side, side);
      if (cell === CACHED) {
        const inset = size > 4 ? Math.round(side / 4) : 0;
        context.fillStyle = style.getPropertyValue("--line-strong");
        context.fillRect(left + inset, top + inset, side - 2 * inset, side - 2 * inset);
      }
      if (cell > CACHED && cell % 2 && size > 4) {
        context.fillStyle = paper;
        context.fillRect(left + side / 2 - 1, top + side / 2 - 1, 2, 2);
      }
    });
  }

  // Of the lane that holds it; null: others.
  key(cell) {
    const lane = this.frame.lanes[(cell - 2) >> 1];
    return lane ? lane.key : null;
  }

  point(event) {
    const { size, columns } = this.layout();
    const column = Math.floor(event.offsetX / size);
    const index = Math.floor(event.offsetY / size) * columns + column;
    const cell = this.cells[index];
    if (cell === undefined || column >= columns) this.hover.textContent = "\u00a0";
    else this.hover.textContent = `${this.place(index)}: ${this.owner(cell)}`;
  }

  place(index) {
    const each = this.frame.pages_per_cell;
    return each === 1 ? `Page ${count(index)}` : `Pages from ${count(index * each)}`;
  }

  owner(cell) {
    if (cell === FREE) return "free";
    if (cell === CACHED) return "free, and its prefix can be used again";
    const lane = this.frame.lanes[(cell - 2) >> 1];
    if (!lane) return "other tenants";
    const what = `${lane.model}, ${count(lane.prompt)} + ${count(lane.generated)} tokens`;
    return cell % 2 ? `${what}, and others with the same prefix` : what;
  }
}
