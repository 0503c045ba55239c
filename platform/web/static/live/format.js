// How numbers are written here: as on the other pages, short, and of one width.

const NARROW = "\u202f";

export const count = (number) => Math.round(number).toString().replace(/\B(?=(\d{3})+$)/g, NARROW);

export function bytes(size) {
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (size < 1024 || unit === "GiB") return `${size.toFixed(unit === "B" || size >= 100 ? 0 : 1)} ${unit}`;
    size /= 1024;
  }
}

export function seconds(value) {
  if (value < 100) return `${value.toFixed(1)} s`;
  return `${Math.floor(value / 60)} min ${Math.floor(value % 60).toString().padStart(2, "0")} s`;
}

export const ms = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;

export const percent = (part, whole) => (whole ? `${((100 * part) / whole).toFixed(part && part < whole / 10 ? 1 : 0)} %` : "–");

export const clock = (at) => new Date(at * 1000).toTimeString().slice(0, 8);

export function element(tag, className, ...content) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...content);
  return made;
}
