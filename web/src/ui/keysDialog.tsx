/** The keys that the page listens to. */

import { Modal } from "./dialog.tsx";

const KEYS = [
  ["Enter", "Send the message"],
  ["Shift + Enter", "Begin a new line"],
  ["Escape", "Stop the answer, or close what is open"],
  ["Ctrl + V", "Add the picture in the clipboard"],
  ["Alt + N", "New conversation"],
  ["Alt + S", "Show or hide the settings"],
  ["Alt + L", "Show or hide the conversations"],
  ["Alt + C", "The request as code"],
  ["← →", "Go through the tokens of an answer, after “Tokens”"],
] as const;

export function KeysDialog() {
  return (
    <Modal title="Keys">
      <dl class="keys">
        {KEYS.map(([key, meaning]) => (
          <div key={key}>
            <dt>
              <kbd>{key}</kbd>
            </dt>
            <dd>{meaning}</dd>
          </div>
        ))}
      </dl>
    </Modal>
  );
}
