// A colour for every adapter, from its digest: the same on every visit, and for everybody. Where two that are on the page
// would have the same, the later one takes the next. Names stand beside colours everywhere, so nobody needs to tell them.

// Hues that are far apart from one to the next; those that are near in hue differ in lightness.
const HUES = [255, 55, 150, 335, 95, 200, 305, 25, 125, 225, 0, 180, 280, 75];
const LIGHT = new Set([55, 335, 125, 225, 180, 280]);
const dark = matchMedia("(prefers-color-scheme: dark)");
const places = new Map(); // key -> index into HUES, the longest unused first

function place(key) {
  if (!places.has(key)) {
    let index = Number.parseInt(key.slice(0, 8), 16) % HUES.length;
    const taken = new Set(places.values());
    if (taken.size < HUES.length) while (taken.has(index)) index = (index + 1) % HUES.length;
    places.set(key, index);
    if (places.size > 4 * HUES.length) places.delete(places.keys().next().value);
  }
  return places.get(key);
}

// strength: 1 for marks, less for what lies behind them.
export function colour(key, strength = 1) {
  const alpha = strength === 1 ? "" : ` / ${strength}`;
  if (key === null) return dark.matches ? `oklch(0.45 0 0${alpha})` : `oklch(0.78 0 0${alpha})`; // other tenants
  if (key === "") return dark.matches ? `oklch(0.72 0.01 200${alpha})` : `oklch(0.5 0.01 200${alpha})`; // the base
  const hue = HUES[place(key)];
  const lightness = dark.matches ? (LIGHT.has(hue) ? 0.83 : 0.72) : LIGHT.has(hue) ? 0.68 : 0.53;
  return `oklch(${lightness} 0.13 ${hue}${alpha})`;
}

export const swatch = (key) => {
  const mark = document.createElement("i");
  mark.className = "swatch";
  mark.style.background = colour(key);
  mark.dataset.key = key;
  return mark;
};

dark.addEventListener("change", () => {
  for (const mark of document.querySelectorAll(".swatch")) mark.style.background = colour(mark.dataset.key);
});

export const onScheme = (redraw) => dark.addEventListener("change", redraw);
