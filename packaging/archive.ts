import { gzipSync } from "bun";

/** A regular file of an archive. */
export interface ArchiveFile {
  /** ASCII, at most 100 characters, with `/` between folders. */
  readonly name: string;
  /** Permission bits, such as 0o755. */
  readonly mode: number;
  readonly bytes: Uint8Array;
}

const BLOCK_BYTES = 512;

/**
 * A gzipped tar archive of `files` in the order given, all of them root's and from `timeSeconds` since 1970. The same input and
 * the same Bun give the same bytes: no user, clock or file system has a part in it. The format is POSIX ustar.
 * Source: https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html, "ustar Interchange Format".
 */
export function makeTarGz(files: readonly ArchiveFile[], timeSeconds: number): Uint8Array {
  const blocks: Uint8Array[] = [];
  for (const file of files) {
    const padding = (BLOCK_BYTES - (file.bytes.length % BLOCK_BYTES)) % BLOCK_BYTES;
    blocks.push(header(file, timeSeconds), file.bytes, new Uint8Array(padding));
  }
  blocks.push(new Uint8Array(2 * BLOCK_BYTES));
  return gzip(Buffer.concat(blocks));
}

/** The same bytes on every machine. libdeflate's output is, zlib's is not. RFC 1952: bytes 4 to 7 are a time, byte 9 is the system. */
export function gzip(content: string | Uint8Array<ArrayBuffer>): Uint8Array {
  const bytes = typeof content === "string" ? new TextEncoder().encode(content) : content;
  const zipped = gzipSync(bytes, { library: "libdeflate", level: 9 });
  zipped.fill(0, 4, 8);
  zipped[9] = 255;
  return zipped;
}

function header({ name, mode, bytes }: ArchiveFile, timeSeconds: number): Uint8Array {
  if (!/^[\x21-\x7e]{1,100}$/.test(name)) throw new Error(`${name} cannot be a name in a ustar archive`);
  const block = Buffer.alloc(BLOCK_BYTES);
  const octal = (value: number, digits: number) => value.toString(8).padStart(digits, "0");
  block.write(name, 0);
  block.write(octal(mode, 7), 100);
  block.write(octal(0, 7), 108); // uid
  block.write(octal(0, 7), 116); // gid
  block.write(octal(bytes.length, 11), 124);
  block.write(octal(timeSeconds, 11), 136);
  block.write(" ".repeat(8), 148); // The checksum counts itself as blanks.
  block.write("0", 156); // a regular file
  block.write("ustar\u000000", 257);
  block.write("root", 265);
  block.write("root", 297);
  const checksum = block.reduce((sum, byte) => sum + byte, 0);
  block.write(`${octal(checksum, 6)}\u0000 `, 148);
  return block;
}
