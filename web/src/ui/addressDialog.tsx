/** Adds a picture by its address. */

import { useState } from "preact/hooks";
import { fromAddress, NotAPicture } from "../images/pictures.ts";
import { closeDialog, Modal } from "./dialog.tsx";
import { TextField } from "./fields.tsx";
import { attach } from "./state.ts";

export function AddressDialog() {
  const [address, setAddress] = useState("");
  const [wrong, setWrong] = useState("");
  const submit = async (event: Event) => {
    event.preventDefault();
    try {
      const picture = await fromAddress(address);
      void attach([Promise.resolve(picture)]);
      closeDialog();
    } catch (error) {
      if (!(error instanceof NotAPicture)) throw error;
      setWrong(error.message);
    }
  };
  const hint = "The server fetches it, by default from public addresses alone. This page loads nothing from elsewhere.";
  return (
    <Modal title="Add a picture by its address">
      <form onSubmit={(event) => void submit(event)}>
        <TextField label="Address" placeholder="https://example.com/photo.jpg" value={address} wrong={wrong} hint={hint} onInput={setAddress} />
        <div class="row">
          <button class="button primary" disabled={!address.trim()}>
            Add it
          </button>
        </div>
      </form>
    </Modal>
  );
}
