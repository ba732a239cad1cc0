const CPU_OF_TRIPLE = { x86_64: "x86_64", aarch64: "arm64" } as const;

/**
 * What an executable's header says that it is, such as `ELF x86_64` or `Mach-O arm64, macOS 13.0`; throws unless that fits
 * `triple`. Sources: System V ABI, "ELF Header"; Apple's <mach-o/loader.h>.
 */
export function describeExecutable(bytes: Uint8Array, triple: string): string {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const found = view.getUint32(0) === 0x7f454c46 ? elf(view) : machO(view);
  const cpu = CPU_OF_TRIPLE[triple.startsWith("x86_64") ? "x86_64" : "aarch64"];
  const system = triple.includes("apple") ? "Mach-O" : triple.endsWith("musl") ? "ELF/musl" : "ELF/glibc";
  if (found.system !== system || found.cpu !== cpu)
    throw new Error(`the executable for ${triple} is ${found.system} ${found.cpu}`);
  return `${found.system} ${found.cpu}${found.more}`;
}

interface Found {
  readonly system: string;
  readonly cpu: string;
  readonly more: string;
}

/** 64-bit little-endian ELF; its C library is told by the interpreter that it names. */
function elf(view: DataView): Found {
  const machine = view.getUint16(18, true);
  const cpu = machine === 62 ? "x86_64" : machine === 183 ? "arm64" : `machine ${machine}`;
  const headersOffset = Number(view.getBigUint64(32, true));
  const [headerBytes, headerCount] = [view.getUint16(54, true), view.getUint16(56, true)];
  for (let i = 0; i < headerCount; i++) {
    const at = headersOffset + i * headerBytes;
    if (view.getUint32(at, true) !== 3) continue; // PT_INTERP
    const start = Number(view.getBigUint64(at + 8, true));
    const length = Number(view.getBigUint64(at + 32, true));
    const interpreter = new TextDecoder().decode(new Uint8Array(view.buffer, view.byteOffset + start, length - 1));
    return { system: interpreter.includes("ld-musl") ? "ELF/musl" : "ELF/glibc", cpu, more: "" };
  }
  return { system: "ELF", cpu, more: "" };
}

/** 64-bit little-endian Mach-O; LC_BUILD_VERSION tells the oldest macOS. */
function machO(view: DataView): Found {
  if (view.getUint32(0, true) !== 0xfeedfacf) return { system: "of an unknown format", cpu: "", more: "" };
  const type = view.getUint32(4, true);
  const cpu = type === 0x01000007 ? "x86_64" : type === 0x0100000c ? "arm64" : `cpu ${type}`;
  const commandCount = view.getUint32(16, true);
  for (let i = 0, at = 32; i < commandCount; i++, at += view.getUint32(at + 4, true)) {
    if (view.getUint32(at, true) !== 0x32) continue; // LC_BUILD_VERSION
    const oldest = view.getUint32(at + 12, true);
    return { system: "Mach-O", cpu, more: `, macOS ${oldest >>> 16}.${(oldest >>> 8) & 255}` };
  }
  return { system: "Mach-O", cpu, more: "" };
}
