// What the pages do beyond forms and links: copy a secret, and one open panel at a time. Everything works without it,
// save the copying.

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (button) {
    const source = document.getElementById(button.dataset.copy);
    source.select();
    try {
      await navigator.clipboard.writeText(source.value);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Press Ctrl+C";
    }
  }
  for (const open of document.querySelectorAll("details.confirm[open]")) {
    if (!open.contains(event.target)) open.open = false;
  }
});

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  for (const open of document.querySelectorAll("details.confirm[open]")) {
    open.open = false;
    open.querySelector("summary").focus();
  }
});

document.addEventListener("focusin", (event) => {
  if (event.target.matches("[data-select]")) event.target.select();
});

// What has not changed stays as it is, so that nobody loses a place on it or is told the same again.
const shown = new WeakMap();
document.addEventListener("htmx:beforeSwap", (event) => {
  const { target, serverResponse } = event.detail;
  if (target.querySelector("details.confirm[open]")) {
    event.detail.shouldSwap = false; // somebody is about to press what is in it
    return;
  }
  if (shown.get(target) === serverResponse) event.detail.shouldSwap = false;
  shown.set(target, serverResponse);
});

// A part that is asked for again and again is left alone while the page is out of sight.
document.addEventListener("htmx:beforeRequest", (event) => {
  const isPolled = event.target.getAttribute("hx-trigger")?.startsWith("every");
  if (isPolled && document.hidden) event.preventDefault();
});
