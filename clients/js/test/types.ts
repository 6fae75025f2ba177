// Compiled by `npm run test:types`, never run.
import { Azion, AzionError, AzionStream, createAzion, type ChatCompletion, type Message } from "../src/index.js";
import "../src/register.js";

const messages = [{ role: "user" as const, content: "Name the european capitals" }];

const completion = await Azion.AI.run("opengvlab-internvl3-1b-instruct", { messages });
const content: string | null = completion.choices[0].message.content;
const tokens: number = completion.usage.total_tokens;

const stream = await globalThis.Azion.AI.run("opengvlab-internvl3-1b-instruct", { stream: true, messages });
for await (const chunk of stream) {
  const piece: string | null | undefined = chunk.choices[0]?.delta.content;
  // @ts-expect-error: a chunk has no message
  chunk.choices[0].message;
}
const response = new Response(stream, { headers: { "content-type": "text/event-stream" } });
const { value } = await stream.getReader().read();
const bytes: Uint8Array | undefined = value;

const streams: boolean = Date.now() > 0;
const either: ChatCompletion | AzionStream = await Azion.AI.run("m", { messages, stream: streams });

const own = createAzion({ baseURL: "https://example.com/v1", apiKey: "key", fetch: globalThis.fetch });
await own.AI.run("m", { messages, temperature: 0 }, { signal: AbortSignal.timeout(1000) });

const image = { type: "image_url" as const, image_url: { url: "data:image/png;base64,AAAA", detail: "original" as const } };
const conversation: Message[] = [
  { role: "system", content: "You see." },
  { role: "developer", content: [{ type: "text", text: "Answer in one word." }], name: "ops" },
  { role: "user", content: [{ type: "text", text: "What is in it?" }, image], name: "ana" },
  completion.choices[0].message,
  { role: "assistant", content: null, tool_calls: [{ id: "1", type: "function", function: { name: "look", arguments: "{}" } }] },
  { role: "tool", tool_call_id: "1", content: [{ type: "text", text: "Here:" }, image] },
  { role: "tool", tool_call_id: "1", content: "a cat" },
  { role: "assistant", content: [{ type: "refusal", refusal: "No." }] },
];
await own.AI.run("m", { messages: conversation });
// @ts-expect-error: system messages have no images
await own.AI.run("m", { messages: [{ role: "system", content: [image] }] });
// @ts-expect-error: the answers of the assistant have no images
await own.AI.run("m", { messages: [{ role: "assistant", content: [image] }] });
// @ts-expect-error: a result names its call
await own.AI.run("m", { messages: [{ role: "tool", content: "a cat" }] });
// @ts-expect-error: nobody has this role
await own.AI.run("m", { messages: [{ role: "narrator", content: "Once" }] });

// @ts-expect-error: messages are required
await own.AI.run("m", {});
// @ts-expect-error: the temperature is a number
await own.AI.run("m", { messages, temperature: "hot" });

try {
  await own.AI.run("m", { messages });
} catch (error) {
  if (error instanceof AzionError) {
    const status: number = error.status;
    const param: string | null = error.error.param;
  }
}
