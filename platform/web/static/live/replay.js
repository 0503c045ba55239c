// The bar by which a recording is played: play, stop, any place of it, and back to what happens now.

import { seconds } from "./format.js";
import { Player } from "./player.js";

const at = (id) => document.getElementById(id);

export class Replay {
  constructor(bar, stage) {
    Object.assign(this, { bar, stage, player: null });
    bar.addEventListener("submit", (event) => event.preventDefault());
    at("replay-play").addEventListener("click", () => this.toggle());
    at("replay-place").addEventListener("input", (event) => this.player.seek(Number(event.target.value)));
    at("replay-close").addEventListener("click", () => this.close());
  }

  get isOpen() {
    return this.player !== null;
  }

  start(frames, name, onClose) {
    this.player?.stop();
    this.onClose = onClose;
    this.player = new Player(frames, {
      onFrame: (frame) => this.stage.show(frame),
      onClear: () => this.stage.clear(),
      onPlace: (place) => this.write(place),
    });
    this.bar.hidden = false;
    at("replay-place").max = this.player.length;
    at("replay-name").textContent = name;
    this.player.seek(0);
    this.player.play();
    this.write(0);
    at("replay-play").focus();
  }

  toggle() {
    if (this.player.isPlaying) this.player.stop();
    else this.player.play();
    this.write(this.player.place);
  }

  write(place) {
    at("replay-place").value = place;
    at("replay-time").textContent = `${seconds(place)} of ${seconds(this.player.length)}`;
    at("replay-place").setAttribute("aria-valuetext", `${Math.round(place)} seconds`);
    at("replay-play").textContent = this.player.isPlaying ? "Pause" : "Play";
  }

  close() {
    this.player.stop();
    this.player = null;
    this.bar.hidden = true;
    this.onClose();
  }
}
