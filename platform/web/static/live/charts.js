// The last minute as lines: step times, tokens, the batch and its pages. A point per frame.

import { onScheme } from "./colours.js";

const SECONDS = 60;
const HEIGHT = 132;

const CHARTS = {
  step: [
    { label: "schedule", colour: "--share-2", value: (f) => f.schedule, unit: "ms" },
    { label: "commit", colour: "--share-1", value: (f) => f.commit, unit: "ms" },
    { label: "execute", colour: "--share-0", value: (f) => f.execute, unit: "ms" },
  ],
  tokens: [
    { label: "read", colour: "--share-2", value: (f) => f.read },
    { label: "written", colour: "--share-0", value: (f) => f.written },
  ],
  batch: [
    { label: "sequences", colour: "--share-0", value: (f) => f.sequences },
    { label: "adapters", colour: "--busy", value: (f) => f.adapters },
  ],
  pages: [{ label: "held", colour: "--share-0", value: (f) => f.pages, unit: "%" }],
};
const STACKED = new Set(["step"]);

export class Charts {
  constructor(root) {
    this.places = [...root.querySelectorAll("[data-chart]")];
    this.clear();
    onScheme(() => this.build());
    new ResizeObserver(() => this.resize()).observe(root);
  }

  clear() {
    this.points = [];
    this.build();
  }

  show(frame, figures) {
    this.points.push({ at: frame.at, ...figures });
    while (this.points.length && this.points[0].at < frame.at - SECONDS) this.points.shift();
    for (const [name, plot] of this.plots) {
      plot.setData(data(name, this.points));
      this.tell(plot);
    }
  }

  // Of now, unless somebody points at another moment.
  tell(plot) {
    if (plot.cursor.left < 0 && this.points.length) plot.setLegend({ idx: this.points.length - 1 });
  }

  build() {
    for (const [, plot] of this.plots ?? []) plot.destroy();
    this.plots = this.places.map((place) => {
      const name = place.dataset.chart;
      return [name, new uPlot(options(name, place), data(name, this.points), place)];
    });
    for (const [, plot] of this.plots) this.tell(plot);
  }

  resize() {
    this.plots.forEach(([, plot], index) => plot.setSize({ width: this.places[index].clientWidth, height: HEIGHT }));
  }
}

function data(name, points) {
  const columns = CHARTS[name].map((series) => points.map((point) => series.value(point) ?? null));
  if (STACKED.has(name)) {
    for (let index = columns.length - 2; index >= 0; index--) {
      columns[index] = columns[index].map((value, at) => (value === null ? null : value + columns[index + 1][at]));
    }
  }
  return [points.map((point) => point.at), ...columns];
}

function options(name, place) {
  const style = getComputedStyle(place);
  const of = (variable) => style.getPropertyValue(variable).trim();
  const axis = { stroke: of("--muted"), font: "11px system-ui, sans-serif", ticks: { show: false }, grid: { stroke: of("--line"), width: 1 } };
  const isStacked = STACKED.has(name);
  return {
    width: Math.max(place.clientWidth, 100),
    height: HEIGHT,
    cursor: { y: false, points: { size: 5 }, drag: { setScale: false } },
    legend: { live: true },
    scales: {
      x: { range: (plot, least, most) => [(most ?? Date.now() / 1000) - SECONDS, most ?? Date.now() / 1000] },
      y: { range: (plot, least, most) => [0, name === "pages" ? 100 : Math.max(most ?? 0, 1) * 1.1] },
    },
    axes: [
      { ...axis, space: 70, size: 22, values: (plot, at) => at.map((moment) => ago(moment, plot.scales.x.max)), splits: (plot) => [45, 30, 15, 0].map((s) => plot.scales.x.max - s) },
      { ...axis, space: 34, size: 40 },
    ],
    series: [{ label: "at", value: () => "" }, ...CHARTS[name].map((series, index) => line(series, of, isStacked, index, name))],
  };
}

const ago = (moment, last) => (last - moment < 1 ? "now" : `−${Math.round(last - moment)} s`);

function line(series, of, isStacked, index, name) {
  const stroke = of(series.colour);
  const below = (plot, row) => (isStacked && row !== null ? (plot.data[index + 2]?.[row] ?? 0) : 0);
  const written = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)}${series.unit ? ` ${series.unit}` : ""}`;
  return {
    label: series.label,
    stroke,
    width: isStacked ? 0 : 1.5,
    fill: isStacked || name === "pages" ? (isStacked ? stroke : `color-mix(in srgb, ${stroke} 18%, transparent)`) : undefined,
    points: { show: false },
    value: (plot, value, _, row) => (value === null || value === undefined ? "–" : written(value - below(plot, row))),
  };
}
