// The chart of the usage page: bars of tokens by hour or day, one kind upon another. The numbers stand in data-chart,
// and once more in the table below it.

const KINDS = ["computed", "cached", "completion"];
const HEIGHT = 240;
const dark = matchMedia("(prefers-color-scheme: dark)");
let chart = null;

// Bars are drawn from the highest to the lowest, so that each covers the foot of the one before.
function stacked(data) {
  const tops = [];
  KINDS.reduce((below, kind) => {
    const top = data[kind].map((tokens, index) => tokens + below[index]);
    tops.unshift(top);
    return top;
  }, data.times.map(() => 0));
  return [data.times, ...tops];
}

function short(tokens) {
  if (tokens < 10_000) return tokens.toLocaleString("en").replaceAll(",", "\u202f");
  return new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 })
    .format(tokens).replace(/([A-Z])$/, "\u202f$1").replace("K", "k").replace("B", "G");
}

function moment(seconds, step) {
  const text = new Date(seconds * 1000).toISOString();
  return step === "day" ? text.slice(0, 10) : text.slice(0, 16).replace("T", " ");
}

// Of the bar under the pointer; of the whole time where there is none.
function legendOf(data) {
  const legend = document.getElementById("legend");
  const heading = document.querySelector("#over-time .count");
  const numbers = Object.fromEntries(KINDS.map((kind) => [kind, legend.querySelector(`.is-${kind} b`)]));
  const whole = [heading.textContent, ...KINDS.map((kind) => numbers[kind].textContent)];
  return (index) => {
    heading.textContent = index === null ? whole[0] : `${moment(data.times[index], data.step)} UTC`;
    KINDS.forEach((kind, place) => {
      numbers[kind].textContent = index === null ? whole[place + 1] : short(data[kind][index]);
    });
  };
}

function options(place, data, show) {
  const style = getComputedStyle(place);
  const colour = (name) => style.getPropertyValue(name).trim();
  const line = { stroke: colour("--line"), width: 1 };
  const text = { stroke: colour("--muted"), font: `12px ${style.fontFamily}`, ticks: { show: false } };
  const paths = uPlot.paths.bars({ size: [0.8, 28] });
  const width = (data.times[1] ?? data.times[0] + 3600) - data.times[0];
  return {
    width: place.clientWidth,
    height: HEIGHT,
    padding: [10, 4, 0, 0],
    tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "UTC"),
    legend: { show: false },
    cursor: { y: false, points: { show: false }, drag: { x: false, y: false } },
    scales: {
      x: { range: () => [data.times[0] - width / 2, data.times.at(-1) + width / 2] },
      y: { range: (_, least, most) => [0, Math.max(most * 1.05, 1)] },
    },
    axes: [
      { ...text, grid: { show: false }, values: (_, ticks) => ticks.map((each) => label(each, data.step)), space: 70, size: 30 },
      { ...text, grid: line, size: 58, values: (_, ticks) => ticks.map(short) },
    ],
    series: [{}, ...KINDS.toReversed().map((kind) => ({ fill: colour(`--tokens-${kind}`), width: 0, points: { show: false }, paths }))],
    hooks: { setCursor: [(self) => show(self.cursor.idx ?? null)] },
  };
}

function label(seconds, step) {
  const text = moment(seconds, "hour");
  return step === "day" || text.endsWith("00:00") ? text.slice(5, 10) : text.slice(11);
}

function draw() {
  chart?.destroy();
  chart = null;
  const place = document.getElementById("chart");
  if (!place) return;
  const data = JSON.parse(place.dataset.chart);
  place.legend ??= legendOf(data);
  place.legend(null);
  chart = new uPlot(options(place, data, place.legend), stacked(data), place);
}

dark.addEventListener("change", draw);
addEventListener("resize", () => {
  const place = document.getElementById("chart");
  if (place) chart?.setSize({ width: place.clientWidth, height: HEIGHT });
});
document.addEventListener("htmx:load", (event) => {
  if (event.target.querySelector?.("#chart") || !document.getElementById("chart")) draw();
});
draw();
