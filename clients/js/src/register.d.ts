import type { AzionBinding } from "./index.js";

declare global {
  var Azion: AzionBinding;
}
