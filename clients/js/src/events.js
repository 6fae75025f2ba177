/** Server-sent events out of bytes that are cut anywhere, with any line ends the standard allows. */
export class EventDecoder {
  #utf8 = new TextDecoder();
  #line = "";
  /** @type {string[]} */
  #data = [];

  /**
   * The data of the events that end in this piece.
   * @param {Uint8Array} piece
   * @returns {string[]}
   */
  decode(piece) {
    const text = this.#line + this.#utf8.decode(piece, { stream: true });
    const lines = text.split(/\r\n|\n|\r(?!$)/); // a CR at the very end may be the first half of a CRLF
    this.#line = lines.pop() ?? "";
    return lines.flatMap((line) => this.#take(line));
  }

  /**
   * @param {string} line
   * @returns {string[]} the event that an empty line ends
   */
  #take(line) {
    if (line === "" && this.#data.length > 0) {
      const event = this.#data.join("\n");
      this.#data = [];
      return [event];
    }
    if (line === "data" || line.startsWith("data:")) {
      this.#data.push(line.slice("data:".length).replace(/^ /, ""));
    }
    return [];
  }
}
