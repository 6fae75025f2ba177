/** A form for a tool: a function that the model may ask to be called. */

import { useState } from "preact/hooks";
import { wrongTool } from "../conversation/settings.ts";
import { current, updateSettings } from "../conversation/store.ts";
import type { Tool } from "../conversation/types.ts";
import { closeDialog, Modal } from "./dialog.tsx";
import { TextField } from "./fields.tsx";

const EMPTY: Tool = {
  name: "",
  description: "",
  parameters: '{\n  "type": "object",\n  "properties": {\n    "city": {"type": "string"}\n  },\n  "required": ["city"]\n}',
};

export function ToolDialog({ index }: { index: number }) {
  const { tools } = current.value.settings;
  const [tool, setTool] = useState(tools[index] ?? EMPTY);
  const [isTried, setTried] = useState(false);
  const wrong = wrongTool(tool, tools.toSpliced(index, 1));
  const submit = (event: Event) => {
    event.preventDefault();
    setTried(true);
    if (Object.keys(wrong).length) return;
    updateSettings({ tools: [...tools.slice(0, index), tool, ...tools.slice(index + 1)] });
    closeDialog();
  };
  const field = (name: keyof Tool) => ({
    value: tool[name],
    wrong: (isTried || name === "parameters") && wrong[name] ? wrong[name] : "",
    onInput: (text: string) => setTool({ ...tool, [name]: text }),
  });
  return (
    <Modal title={tools[index] ? "Change a tool" : "Add a tool"}>
      <form onSubmit={submit}>
        <TextField label="Name" placeholder="get_weather" isCode {...field("name")} />
        <TextField label="Description" placeholder="Get the weather of a city." hint="The model reads it." {...field("description")} />
        <TextField label="Arguments, a JSON Schema" rows={9} isCode {...field("parameters")} />
        <div class="row">
          <button type="button" class="button" onClick={closeDialog}>
            Cancel
          </button>
          <button class="button primary">Save the tool</button>
        </div>
      </form>
    </Modal>
  );
}
