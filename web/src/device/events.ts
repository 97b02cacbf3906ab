/** What a page and the worker in which its device runs say to one another. */

/** Where a device's rows are. */
export type Rows =
  | {
      readonly kind: "table";
      readonly file: File;
      readonly text: string;
      readonly pair?: string;
      readonly label: string;
    }
  | { readonly kind: "images"; readonly files: readonly { readonly label: string; readonly file: File }[] }
  | { readonly kind: "arrays"; readonly file: File };

/** The page tells its device. */
export type Order =
  | {
      readonly type: "join";
      /** Of the page (https) or of the gateway (wss). */
      readonly url: string;
      readonly token: string;
      readonly rows: Rows;
      /** It takes part only in runs in which no label is sent. */
      readonly keepLabels: boolean;
    }
  | { readonly type: "pause" }
  | { readonly type: "resume" }
  | { readonly type: "leave" };

export type State =
  "connecting" | "fetching" | "preparing" | "waiting" | "training" | "paused" | "left" | "failed" | "finished";

/** Bytes by what is sent. */
export type Bytes = Record<string, number>;

/** The device tells its page. */
export type Event =
  | { readonly type: "state"; readonly state: State; readonly detail?: string }
  /** Bytes of the package that are there, and of all of it. */
  | { readonly type: "package"; readonly done: number; readonly total: number }
  | { readonly type: "step"; readonly round: number; readonly step: number; readonly steps: number }
  /** In all of this run since the page joined it. */
  | { readonly type: "bytes"; readonly up: Bytes; readonly down: Bytes }
  | { readonly type: "evaluation"; readonly step: number; readonly loss?: number; readonly accuracy?: number }
  | { readonly type: "memory"; readonly bytes: number }
  | ({ readonly type: "recipe" } & Facts)
  | { readonly type: "log"; readonly line: string };

/** What of a package's recipe is worth showing. */
export interface Facts {
  readonly method: string;
  /** The family of the model, and its name in the recipe. */
  readonly model: string;
  /** Blocks that run on this device. */
  readonly cut: number;
  /** Values that this device trains. */
  readonly trained: number;
  readonly rows: number;
  readonly steps: number;
  readonly batch: number;
  /** What goes to the server, by the names of `bytes`. */
  readonly leaves: readonly string[];
  /** What stays here. */
  readonly stays: readonly string[];
}

/** Hears what a device tells. */
export type Tell = (event: Event) => void;
