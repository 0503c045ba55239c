// The live engine page: frames from the server or from a recording, shown by the panels, each of which knows its own.

import { Charts } from "./charts.js";
import { Events } from "./events.js";
import { Feed } from "./feed.js";
import { Lanes } from "./lanes.js";
import { LanesTable } from "./lanes_table.js";
import { PageMap } from "./page_map.js";
import { Queues } from "./queues.js";
import { open, Recorder } from "./recording.js";
import { Replay } from "./replay.js";
import { figures, Strip } from "./strip.js";
import { Tiers } from "./tiers.js";

const at = (id) => document.getElementById(id);
const lanes = new Lanes(at("lanes"), at("lanes-none"));
const panels = [
  new Strip(at("live-strip")),
  lanes,
  new LanesTable(at("lanes-as-table")),
  new PageMap(at("pages"), at("pages-summary"), at("pages-hover")),
  new Queues(at("queues"), at("queues-none"), at("queues-summary")),
  new Tiers(at("tiers")),
  new Charts(at("charts")),
  new Events(at("events"), at("events-none")),
];
let before = null;
let known = 0; // the moment up to which steps and events have been shown

// Whoever comes back is told of what was before once more.
function fresh(frame) {
  const steps = frame.steps.filter((step) => step[1] > known);
  const events = frame.events.filter((event) => event.at > known);
  known = Math.max(known, ...steps.map((step) => step[1]), ...events.map((event) => event.at));
  return { ...frame, steps, events };
}

function show(told) {
  const frame = fresh(told);
  const now = figures(frame, before);
  for (const panel of panels) panel.show(frame, now);
  before = frame;
}

function clear() {
  before = null;
  known = 0;
  for (const panel of panels) panel.clear();
}

// What is going on with the page itself; told aloud only when it changes.
function say(state, tone = "") {
  const pill = at("live-state");
  if (pill.textContent === state) return;
  pill.textContent = state;
  pill.className = `pill ${tone}`;
}

function complain(text) {
  at("live-trouble").hidden = !text;
  if (at("live-trouble").textContent !== text) at("live-trouble").textContent = text;
}

const recorder = new Recorder(
  (left) => (at("live-record").textContent = `Save now, ${left} s left`),
  () => (at("live-record").textContent = "Record 60 s"),
);

const feed = new Feed(
  at("live-source").dataset.feed,
  (frame) => {
    recorder.take(frame);
    if (!isPaused) show(frame);
    if (!isPaused) say(frame.engine === "up" ? "live" : "engine is down", frame.engine === "up" ? "good" : "bad");
    complain(frame.engine === "up" ? "" : "The engine does not answer. If it died it is started again, which takes as long as loading the model.");
  },
  (state, why) => {
    if (state !== "lost") return;
    say("no connection", "bad");
    complain(`${why} Trying again.`);
  },
);

let isPaused = false;
const replay = new Replay(at("replay"), { show, clear });

function pause(wanted) {
  isPaused = wanted;
  lanes.moving = !wanted;
  at("live-pause").textContent = wanted ? "Go on" : "Pause";
  at("live-pause").setAttribute("aria-pressed", String(wanted));
  if (wanted) say("paused", "busy");
  follow();
}

// The engine is watched only while somebody looks, or records.
function follow() {
  const isWanted = replay.isOpen ? recorder.isRecording : recorder.isRecording || (!isPaused && !document.hidden);
  if (isWanted) feed.start();
  else feed.stop();
}

at("live-pause").addEventListener("click", () => pause(!isPaused));
document.addEventListener("visibilitychange", follow);

at("live-record").addEventListener("click", () => {
  if (recorder.isRecording) recorder.finish();
  else recorder.start();
  follow();
});

at("live-open").addEventListener("change", async (event) => {
  const [file] = event.target.files;
  event.target.value = "";
  if (!file) return;
  try {
    const frames = await open(file);
    complain("");
    if (recorder.isRecording) recorder.finish();
    at("live-pause").disabled = at("live-record").disabled = true;
    isPaused = false;
    lanes.moving = true;
    replay.start(frames, file.name, () => {
      at("live-pause").disabled = at("live-record").disabled = false;
      clear();
      pause(false);
    });
    follow();
    say("recording", "busy");
  } catch (error) {
    complain(error.message);
  }
});

follow();
