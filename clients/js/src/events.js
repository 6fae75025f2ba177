/**
 * Decodes server-sent events from pieces of bytes, which may end within an event. It accepts all line ends of the
 * standard.
 */
export class EventDecoder {
  #utf8 = new TextDecoder();
  #line = "";
  /** @type {string[]} */
  #data = [];

  /**
   * Return the data of the events that end in this piece.
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
   * Take one line, and return the data of the event that it ends, if it is empty.
   * @param {string} line
   * @returns {string[]}
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
