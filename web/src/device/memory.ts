/** What of this machine's memory a device takes, as far as a page can tell: it can't see its own process. */

const memories: WebAssembly.Memory[] = [];

/** Before the runtime is loaded: its memory, which never shrinks, is noted when it is made. */
export function noteMemories(): void {
  const Made = WebAssembly.Memory;
  WebAssembly.Memory = class extends Made {
    constructor(descriptor: WebAssembly.MemoryDescriptor) {
      super(descriptor);
      memories.push(this);
    }
  };
}

/** Bytes of the runtime's memory at its largest, and of what is held beside. */
export function peakBytes(held: number): number {
  return memories.reduce((sum, memory) => sum + memory.buffer.byteLength, held);
}
