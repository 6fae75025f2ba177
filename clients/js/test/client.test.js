import assert from "node:assert/strict";
import { createServer } from "node:http";
import { afterEach, beforeEach, test } from "node:test";

import { Azion, AzionError, AzionStream, createAzion } from "../src/index.js";

const REQUEST = { messages: [{ role: "user", content: "Hi" }] };
const COMPLETION = { object: "chat.completion", choices: [{ message: { role: "assistant", content: "Hello" } }] };
const ERROR = { error: { message: "temperature is 3.", type: "invalid_request_error", param: "temperature", code: null } };
const CHUNKS = ["Zü", "rich", " 👋"].map((content) => ({ choices: [{ index: 0, delta: { content } }] }));

const event = (value) => `data: ${JSON.stringify(value)}\n\n`;
const EVENTS = CHUNKS.map(event).join("") + "data: [DONE]\n\n";

let server, baseURL, answer, closed;

beforeEach(async () => {
  server = createServer(async (request, response) => {
    let body = "";
    for await (const piece of request) body += piece;
    closed = new Promise((resolve) => response.on("close", () => resolve(response.writableFinished)));
    await answer(response, { url: request.url, headers: request.headers, body: JSON.parse(body) });
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  baseURL = `http://127.0.0.1:${server.address().port}/v1`;
});

afterEach(() => {
  delete process.env.TERNVL_BASE_URL;
  delete process.env.TERNVL_API_KEY;
  server.closeAllConnections();
  return new Promise((resolve) => server.close(resolve));
});

const run = (request, options) => createAzion({ baseURL }).AI.run("some-model", request, options);
const json = (status, value) => (response) =>
  response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(value));
const startStream = (response) => response.writeHead(200, { "content-type": "text/event-stream; charset=utf-8" });
const streamed = (text) => (response) => startStream(response).end(text);

/** Sends the first event, and then nothing. */
const hanging = (response) => startStream(response).write(event(CHUNKS[0]));

async function collect(iterable) {
  const items = [];
  for await (const item of iterable) items.push(item);
  return items;
}

async function rejection(promise) {
  return promise.then(
    () => assert.fail("nothing was thrown"),
    (error) => error,
  );
}

test("an answer is a plain object; the request is sent with its model", async () => {
  let seen;
  answer = (response, request) => ((seen = request), json(200, COMPLETION)(response));
  assert.deepEqual(await run({ ...REQUEST, temperature: 0 }), COMPLETION);
  assert.equal(seen.url, "/v1/chat/completions");
  assert.deepEqual(seen.body, { ...REQUEST, temperature: 0, model: "some-model" });
  assert.equal(seen.headers["content-type"], "application/json");
  assert.equal(seen.headers.authorization, undefined);
});

test("the settings come from the environment, at the time of the call, unless they are given", async () => {
  const keys = [];
  answer = (response, { headers }) => (keys.push(headers.authorization), json(200, COMPLETION)(response));
  process.env.TERNVL_BASE_URL = `${baseURL}/`;
  process.env.TERNVL_API_KEY = "from-environment";
  await Azion.AI.run("m", REQUEST);
  await createAzion({ apiKey: "own" }).AI.run("m", REQUEST);
  assert.deepEqual(keys, ["Bearer from-environment", "Bearer own"]);
});

test("another fetch can be given", async () => {
  const asked = [];
  const fetch = async (url, init) => (asked.push([url, init.method]), Response.json(COMPLETION));
  const azion = createAzion({ baseURL: "https://edge.example/v1", fetch });
  assert.deepEqual(await azion.AI.run("m", REQUEST), COMPLETION);
  assert.deepEqual(asked, [["https://edge.example/v1/chat/completions", "POST"]]);
});

test("register sets the global", async () => {
  assert.equal(globalThis.Azion, undefined);
  await import("ternvl-azion/register");
  assert.equal(globalThis.Azion, (await import("ternvl-azion")).Azion);
  delete globalThis.Azion;
});

test("a stream is iterated as parsed chunks", async () => {
  answer = streamed(EVENTS);
  const stream = await run({ ...REQUEST, stream: true });
  assert.ok(stream instanceof ReadableStream && stream instanceof AzionStream);
  assert.deepEqual(await collect(stream), CHUNKS);
});

test("a stream cut between any two bytes gives the same chunks", async () => {
  const bytes = new TextEncoder().encode(EVENTS.replaceAll("\n", "\r\n"));
  const whole = { start: (controller) => ([...bytes].forEach((byte) => controller.enqueue(Uint8Array.of(byte))), controller.close()) };
  assert.deepEqual(await collect(new AzionStream(new ReadableStream(whole))), CHUNKS);
});

test("a stream is the body of a Response, byte for byte", async () => {
  answer = streamed(EVENTS);
  const stream = await run({ ...REQUEST, stream: true });
  const response = new Response(stream, { headers: { "content-type": "text/event-stream" } });
  assert.equal(await response.text(), EVENTS);
});

test("a stream can be read once", async () => {
  answer = streamed(EVENTS);
  const stream = await run({ ...REQUEST, stream: true });
  const reader = stream.getReader();
  assert.ok((await rejection(collect(stream))) instanceof TypeError);
  await reader.cancel();
});

test("chunks come while the answer is still written", async () => {
  answer = hanging;
  const chunks = (await run({ ...REQUEST, stream: true }))[Symbol.asyncIterator]();
  assert.deepEqual(await chunks.next(), { done: false, value: CHUNKS[0] });
  await chunks.return();
});

test("leaving the loop closes the connection", async () => {
  answer = hanging;
  for await (const chunk of await run({ ...REQUEST, stream: true })) {
    assert.deepEqual(chunk, CHUNKS[0]);
    break;
  }
  assert.equal(await closed, false);
});

test("cancelling the bytes closes the connection", async () => {
  answer = hanging;
  const stream = await run({ ...REQUEST, stream: true });
  await new Response(stream).body.cancel();
  assert.equal(await closed, false);
});

test("an abort rejects with the caller's reason, before and within the stream", async () => {
  const reason = new Error("enough");
  answer = () => {};
  const controller = new AbortController();
  setTimeout(() => controller.abort(reason), 20);
  assert.equal(await rejection(run(REQUEST, { signal: controller.signal })), reason);

  answer = hanging;
  const later = new AbortController();
  const chunks = (await run({ ...REQUEST, stream: true }, { signal: later.signal }))[Symbol.asyncIterator]();
  await chunks.next();
  setTimeout(() => later.abort(reason), 20);
  assert.equal(await rejection(chunks.next()), reason);
  assert.equal(await closed, false);
});

test("a refusal carries status and body", async () => {
  answer = json(400, ERROR);
  const error = await rejection(run({ ...REQUEST, stream: true, temperature: 3 }));
  assert.ok(error instanceof AzionError && error instanceof Error);
  assert.equal(error.status, 400);
  assert.equal(error.message, "temperature is 3.");
  assert.deepEqual(error.body, ERROR);
  assert.deepEqual(error.error, ERROR.error);
});

test("an answer that is not the protocol's is an error of its shape", async () => {
  answer = (response) => response.writeHead(503).end("<html>busy</html>");
  const busy = await rejection(run(REQUEST));
  assert.equal(busy.status, 503);
  assert.deepEqual(Object.keys(busy.error), ["message", "type", "param", "code"]);

  answer = (response) => response.end("<html>a login page</html>");
  assert.equal((await rejection(run(REQUEST))).status, 502);
});

test("a failure within the stream rejects with its body, after the chunks before it", async () => {
  const body = { error: { message: "The engine failed.", type: "server_error", param: null, code: "err_1" } };
  answer = streamed(event(CHUNKS[0]) + event(body));
  const chunks = (await run({ ...REQUEST, stream: true }))[Symbol.asyncIterator]();
  assert.deepEqual((await chunks.next()).value, CHUNKS[0]);
  const error = await rejection(chunks.next());
  assert.ok(error instanceof AzionError);
  assert.equal(error.status, 500);
  assert.deepEqual(error.body, body);
});

for (const [name, ending] of Object.entries({
  "ends early": (response) => response.end(),
  "breaks off": (response) => response.destroy(),
  "is no JSON": (response) => response.end("data: {\n\n"),
})) {
  test(`a stream that ${name} is an error`, async () => {
    answer = (response) => startStream(response).write(event(CHUNKS[0]), () => ending(response));
    const error = await rejection(run({ ...REQUEST, stream: true }).then(collect));
    assert.ok(error instanceof AzionError);
    assert.equal(error.status, 502);
    assert.equal(error.error.code, "broken_stream");
  });
}

test("a server that is not there", async () => {
  const gone = createServer();
  await new Promise((resolve) => gone.listen(0, "127.0.0.1", resolve));
  const { port } = gone.address();
  await new Promise((resolve) => gone.close(resolve));
  const error = await rejection(createAzion({ baseURL: `http://127.0.0.1:${port}/v1` }).AI.run("m", REQUEST));
  assert.ok(error instanceof AzionError);
  assert.equal(error.status, 502);
  assert.equal(error.error.code, "unreachable");
  assert.match(error.message, /ECONNREFUSED/);
});

test("a base URL that is none is named", async () => {
  for (const baseURL of ["localhost:8000", "ftp://example.com", "http://"]) {
    const error = await rejection(createAzion({ baseURL }).AI.run("m", REQUEST));
    assert.ok(error instanceof TypeError);
    assert.ok(error.message.includes(`"${baseURL}"`));
  }
});
