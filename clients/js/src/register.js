import { Azion } from "./index.js";

globalThis.Azion = Azion;
