// The verbs of tests/clients/adapters/node.py with `openai`.
import OpenAI, { APIError } from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { main } from "./main.js";

const chat = ({ url }) => new OpenAI({ baseURL: url, apiKey: "none", maxRetries: 0 }).chat.completions;

function messages(text, image) {
  if (!image) return [{ role: "user", content: text }];
  const parts = [{ type: "text", text }, { type: "image_url", image_url: { url: image } }];
  return [{ role: "user", content: parts }];
}

const greedy = (asked) => ({
  model: asked.model,
  messages: messages(asked.text, asked.image),
  max_tokens: 24,
  temperature: 0,
});

const calling = (asked) => ({
  ...greedy(asked),
  max_tokens: asked.room,
  tools: [asked.tool],
  tool_choice: "required",
  parallel_tool_calls: false,
});

const calls = (message) =>
  message.tool_calls.map((call) => [call.function.name, JSON.parse(call.function.arguments)]);

await main({
  async text(asked) {
    return (await chat(asked).create(greedy(asked))).choices[0].message.content;
  },

  async stream(asked) {
    const pieces = [];
    for await (const chunk of await chat(asked).create({ ...greedy(asked), stream: true })) {
      pieces.push(chunk.choices[0].delta.content ?? "");
    }
    return pieces;
  },

  async tools(asked) {
    return calls((await chat(asked).create(calling(asked))).choices[0].message);
  },

  async streamedTools(asked) {
    let pieces = 0;
    const stream = chat(asked).stream(calling(asked));
    stream.on("tool_calls.function.arguments.delta", () => (pieces += 1));
    const completion = await stream.finalChatCompletion();
    return [calls(completion.choices[0].message), pieces];
  },

  async schema(asked) {
    const Capital = z.object({ name: z.enum(asked.schema.properties.name.enum), is_large: z.boolean() });
    const format = zodResponseFormat(Capital, "capital");
    const completion = await chat(asked).parse({ ...greedy(asked), max_tokens: asked.room, response_format: format });
    return completion.choices[0].message.parsed;
  },

  async error(asked) {
    try {
      await chat(asked).create({ model: "none", messages: messages("hi") });
    } catch (error) {
      if (error instanceof APIError) return error.status;
      throw error;
    }
    return 200;
  },

  async cancel(asked) {
    const long = { ...greedy({ ...asked, text: "hi" }), max_tokens: 4000, ignore_eos: true, stream: true };
    for await (const chunk of await chat(asked).create(long)) {
      return chunk.choices.length === 1; // leaving the loop ends the stream
    }
  },
});
