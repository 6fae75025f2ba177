import assert from "node:assert/strict";
import { test } from "node:test";

import { EventDecoder } from "../src/events.js";

const EVENTS = ['{"content":"Zürich, 東京, 👩‍👩‍👧"}', "first\nsecond", "", " indented", "[DONE]"];
const TEXT = [
  ": a comment", "",
  `data: ${EVENTS[0]}`, "",
  "event: message", "id: 7", "data:first", "data: second", "", "",
  "retry: 10", "data", "",
  "database: no field", "data:  indented", "",
  "data: [DONE]", "", "",
]; // prettier-ignore

const bytes = (end) => new TextEncoder().encode(TEXT.join(end));

function decoded(pieces) {
  const decoder = new EventDecoder();
  return pieces.flatMap((piece) => decoder.decode(piece));
}

for (const [name, end] of Object.entries({ LF: "\n", CRLF: "\r\n", CR: "\r" })) {
  // A last CR may be half of a CRLF, so what it ends is known with the next byte.
  const whole = end === "\r" ? new Uint8Array([...bytes(end), ...bytes(": more")]) : bytes(end);

  test(`events whole, with ${name}`, () => assert.deepEqual(decoded([whole]), EVENTS));

  test(`events byte by byte, with ${name}`, () => {
    assert.deepEqual(decoded([...whole].map((byte) => new Uint8Array([byte]))), EVENTS);
  });

  test(`events cut in two and in three anywhere, with ${name}`, () => {
    for (let cut = 0; cut <= whole.length; cut++) {
      const middle = Math.floor(cut / 2);
      assert.deepEqual(decoded([whole.slice(0, cut), whole.slice(cut)]), EVENTS);
      assert.deepEqual(decoded([whole.slice(0, middle), whole.slice(middle, cut), whole.slice(cut)]), EVENTS);
    }
  });
}

test("mixed line ends and a byte order mark", () => {
  const text = "\ufeffdata: a\r\n\ndata: b\r\rdata: c\n\r\n";
  assert.deepEqual(decoded([new TextEncoder().encode(text)]), ["a", "b", "c"]);
});

test("an event that is not ended is not given", () => {
  assert.deepEqual(decoded([new TextEncoder().encode("data: a\n\ndata: b\n")]), ["a"]);
});
