// Compiled by `npm run test:types`, never run.
import { Azion, AzionError, AzionStream, createAzion, type ChatCompletion } from "../src/index.js";
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
