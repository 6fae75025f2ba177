// The verbs of tests/clients/adapters/node.py with Vercel's AI SDK.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateText, jsonSchema, Output, streamText, tool } from "ai";
import { main } from "./main.js";

function model(asked, name = asked.model) {
  const provider = createOpenAICompatible({ name: "ternvl", baseURL: asked.url, supportsStructuredOutputs: true });
  return provider(name);
}

function greedy(asked) {
  const content = [{ type: "text", text: asked.text }];
  if (asked.image) content.push({ type: "image", image: new URL(asked.image) });
  const messages = [{ role: "user", content }];
  return { model: model(asked), messages, maxOutputTokens: 24, temperature: 0, maxRetries: 0 };
}

function calling(asked) {
  const { name, description, parameters } = asked.tool.function;
  const tools = { [name]: tool({ description, inputSchema: jsonSchema(parameters) }) };
  return {
    ...greedy(asked),
    maxOutputTokens: asked.room,
    tools,
    toolChoice: "required",
    providerOptions: { ternvl: { parallel_tool_calls: false } },
  };
}

await main({
  async text(asked) {
    return (await generateText(greedy(asked))).text;
  },

  async stream(asked) {
    const pieces = [];
    for await (const piece of streamText(greedy(asked)).textStream) pieces.push(piece);
    return pieces;
  },

  async tools(asked) {
    const { toolCalls, finishReason } = await generateText(calling(asked));
    if (finishReason !== "tool-calls") throw new Error(finishReason);
    return toolCalls.map((call) => [call.toolName, call.input]);
  },

  async streamedTools(asked) {
    let pieces = 0;
    const result = streamText(calling(asked));
    for await (const part of result.fullStream) {
      if (part.type === "error") throw part.error;
      pieces += part.type === "tool-input-delta";
    }
    return [(await result.toolCalls).map((call) => [call.toolName, call.input]), pieces];
  },

  async schema(asked) {
    const output = Output.object({ schema: jsonSchema(asked.schema) });
    return (await generateText({ ...greedy(asked), maxOutputTokens: asked.room, output })).output;
  },

  async error(asked) {
    try {
      await generateText({ ...greedy({ ...asked, text: "hi" }), model: model(asked, "none") });
    } catch (error) {
      if (APICallError.isInstance(error)) return error.statusCode;
      throw error;
    }
    return 200;
  },

  async cancel(asked) {
    const controller = new AbortController();
    const result = streamText({
      ...greedy({ ...asked, text: "hi" }),
      maxOutputTokens: 4000,
      providerOptions: { ternvl: { ignore_eos: true } },
      abortSignal: controller.signal,
    });
    for await (const piece of result.textStream) {
      controller.abort();
      return piece.length > 0;
    }
  },
});
