// What a session begins with, as it is chosen: a seed, steps, a picture or a session to go on from, and whether the
// environment is shown beside.

import { ENDS } from "./exports.js";
import { dice, whole } from "./settings.js";
import { $, Choice, note } from "./view.js";

// What the gateway may find wrong with a beginning, and what the world's own is instead.
const OWN = {
  bad_prompt: { prompt: null },
  bad_steps: { steps: null },
  bad_image: { image: null },
  bad_save: {}, // it is in no setting
  bad_message: { prompt: null, steps: null, image: null, reality: false },
};

export class Beginning {
  /** settings: as `linked` read them, kept up to date here. anew(save): begin with them; save: id of a session that was
   * saved, or null. */
  constructor(settings, entrance, stage, anew) {
    this.settings = settings;
    this.entrance = entrance;
    this.stage = stage;
    this.anew = anew;
    this.mended = new Set();
    $("seed").onchange = () => this.#seed(whole($("seed").value));
    $("seed").onblur = () => { $("seed").value = this.settings.seed; };
    $("dice").onclick = () => this.#seed(dice());
    $("choose").onclick = () => $("file").click();
    $("file").onchange = () => {
      const [file] = $("file").files;
      $("file").value = ""; // the same one may be chosen again
      if (file) this.from(file);
    };
    $("unchoose").onclick = () => this.from(null);
    $("compare").onclick = () => this.#compare();
  }

  of(world) {
    const choices = world.steps.map((each) => [each, String(each)]);
    $("steps-row").hidden = world.steps.length < 2;
    this.steps = new Choice($("steps"), "steps", [[null, "default"], ...choices], this.settings.steps, (value) => {
      this.settings.steps = value;
      this.anew(null);
    });
    $("compare-row").hidden = !world.reality;
    if (!world.reality) this.settings.reality = false;
    this.mended.clear();
    this.show();
  }

  show() {
    const { seed, steps, image, reality } = this.settings;
    $("seed").value = seed;
    this.steps.choose(steps);
    $("thumb").hidden = $("unchoose").hidden = image === null;
    $("compare").setAttribute("aria-pressed", String(reality));
    this.stage.compare(reality);
  }

  /** Begin with a picture, or with a session that was saved; null: with neither any more. */
  async from(file) {
    if (file?.name.endsWith(ENDS.session)) return this.#open(file);
    if (!await this.#picture(file)) return undefined;
    this.show();
    return this.anew(null);
  }

  /** The picture is not known any more. */
  forget() {
    this.settings.image = null;
    this.show();
  }

  /** It cannot begin like this: fall back to the world's own in what was wrong. False where that did not help. */
  mend(code) {
    if (this.mended.has(code)) return false;
    this.mended.add(code);
    Object.assign(this.settings, OWN[code]);
    this.show();
    return true;
  }

  /** Whether this may be mended. */
  concerns(code) {
    return code in OWN;
  }

  /** Pictures come without the environment. */
  alone() {
    this.settings.reality = false;
    this.show();
    note("The real environment could not come along, and is not shown any more. Compare again to begin anew with it.");
  }

  #seed(seed) {
    if (seed === null) return note(`A seed is a whole number of at most 15 digits; this one stays ${this.settings.seed}.`);
    this.settings.seed = seed;
    return this.anew(null);
  }

  /** Whether it was taken; the one before stays where it was not. */
  async #picture(file) {
    let image = null;
    try {
      if (file) image = await this.entrance.upload(file);
    } catch (error) {
      note(`The picture was not taken: ${error.message}`);
      return false;
    }
    URL.revokeObjectURL($("thumb").src);
    this.settings.image = image;
    if (file) {
      this.settings.reality = false; // an environment cannot be put where a picture is
      $("thumb").src = URL.createObjectURL(file);
    }
    return true;
  }

  async #open(file) {
    try {
      const { id, prompt, seed, steps } = await this.entrance.open(file);
      URL.revokeObjectURL($("thumb").src);
      Object.assign(this.settings, { prompt, seed, steps, image: null, reality: false });
      this.show();
      this.anew(id);
    } catch (error) {
      note(`The session was not opened: ${error.message}`);
    }
  }

  #compare() {
    const { settings } = this;
    settings.reality = !settings.reality;
    if (settings.reality) settings.image = null;
    this.anew(null);
  }
}
