import assert from "node:assert/strict";
import { test } from "node:test";
import { pretty } from "../src/answer/json.ts";
import { visible, visibleName } from "../src/answer/visible.ts";
import { events } from "../src/api/sse.ts";

test("JSON is indented, and its values stay as they are written", () => {
  const text = '{"a":12345678901234567890.10,"b":[],"c":[1,{"d":"x, {y}: \\"z\\""}],"a":{}}';
  assert.equal(
    pretty(text),
    '{\n  "a": 12345678901234567890.10,\n  "b": [],\n  "c": [\n    1,\n    {\n      "d": "x, {y}: \\"z\\""\n    }\n  ],\n  "a": {}\n}',
  );
  assert.equal(pretty('{"color" : "red" }'), '{\n  "color": "red"\n}');
});

test("what is no object and no array is not JSON here", () => {
  for (const text of ["Paris", "12", '"a"', "{", "[1,", "", "null"]) assert.equal(pretty(text), null);
});

test("characters that turn text around are written out", () => {
  assert.equal(visible("a\u202egnp.exe"), "a[U+202E]gnp.exe");
  assert.equal(visible("\u2066x\u2069 שלום"), "[U+2066]x[U+2069] שלום");
  assert.equal(visibleName("a\nb\u0000c"), "a b c");
  assert.equal(visibleName("\t"), "image");
});

async function read(...chunks: string[]): Promise<string[]> {
  const stream = new ReadableStream<Uint8Array>({
    start(controller) {
      for (const chunk of chunks) controller.enqueue(new TextEncoder().encode(chunk));
      controller.close();
    },
  });
  const found: string[] = [];
  for await (const data of events(stream)) found.push(data);
  return found;
}

test("events are read whole, however their bytes arrive", async () => {
  assert.deepEqual(await read("data: a\n", "\ndata: b\r\n\r\nda", "ta:c\n\n"), ["a", "b", "c"]);
  assert.deepEqual(await read(": comment\n\nevent: x\ndata: 1\ndata: 2\n\ndata: cut"), ["1\n2"]);
});

test("a character that is cut by a chunk is read whole", async () => {
  const bytes = new TextEncoder().encode("data: 日\n\n");
  const stream = new ReadableStream<Uint8Array>({
    start(controller) {
      for (const byte of bytes) controller.enqueue(Uint8Array.of(byte));
      controller.close();
    },
  });
  for await (const data of events(stream)) assert.equal(data, "日");
});
