// From encoded bytes to bitmaps, in the order in which they came. Browsers decode off the main thread here already;
// a worker of ours would only add a copy.

import { CODECS } from "./protocol.js";

const bitmap = (bytes, codec) => createImageBitmap(new Blob([bytes], { type: CODECS[codec] }));

export class Decoder {
  /** ready(picture, with `bitmap` and `beside`: null where there is no environment), failed(picture, error). What they
   * throw is reported, and ends nothing: the next picture comes all the same. */
  constructor(ready, failed) {
    this.ready = ready;
    this.failed = failed;
    this.turn = Promise.resolve();
  }

  decode(picture) {
    const { image, reality, codec, ...rest } = picture;
    const both = Promise.all([bitmap(image, codec), reality.length ? bitmap(reality, codec) : null]);
    const told = both.then(
      ([made, beside]) => () => this.ready({ ...rest, bitmap: made, beside }),
      (error) => () => this.failed(picture, error),
    );
    this.turn = this.turn.then(async () => (await told)()).catch(reportError);
  }
}
