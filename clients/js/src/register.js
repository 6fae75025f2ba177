/** Importing this module sets the global `Azion`. */
import { Azion } from "./index.js";

globalThis.Azion = Azion;
