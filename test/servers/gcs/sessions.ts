import { invalid, Refused } from "./answers.ts";
import type { Bucket, Stored } from "./bucket.ts";
import { crc32cBase64 } from "./crc32c.ts";

const MULTIPLE_BYTES = 256 * 1024;

/** What an upload in chunks is to become. */
export interface SessionStart {
  readonly bucket: Bucket;
  readonly name: string;
  readonly contentType: string;
  readonly storageClass: string | undefined;
  readonly ifGenerationMatch: string | null;
}

interface Session extends SessionStart {
  readonly pieces: Buffer[];
  bytes: number;
  made: Stored | null;
  isCancelled: boolean;
}

/**
 * Resumable uploads, held to what Google documents: chunks but the last are multiples of 256 KiB and begin where the server is (bytes
 * that it has are ignored), a status question changes nothing, the object comes with the last byte of a total that was named, a
 * sum that does not fit makes none, a finished session tells its object again, a cancelled one answers 499 to everything.
 * Source: https://cloud.google.com/storage/docs/performing-resumable-uploads
 */
export class Sessions {
  /** Of each chunk the server keeps at most so many bytes. */
  takesAtMost = Number.POSITIVE_INFINITY;
  /** Called with each chunk that came whole; may spoil what is kept of it. */
  onChunk: (bytes: Buffer) => void = () => {};
  cancelledCount = 0;
  readonly #sessions = new Map<string, Session>();

  start(what: SessionStart): string {
    const id = `ABg5-${crypto.randomUUID()}`;
    this.#sessions.set(id, { ...what, pieces: [], bytes: 0, made: null, isCancelled: false });
    return id;
  }

  /** Begun, and neither finished nor cancelled. */
  get openCount(): number {
    return [...this.#sessions.values()].filter(({ made, isCancelled }) => made === null && !isCancelled).length;
  }

  /** The server forgets all of them. */
  forgetAll(): void {
    this.#sessions.clear();
  }

  async answer(id: string, request: Request): Promise<Response> {
    const session = this.#sessions.get(id);
    if (session === undefined) throw new Refused(404, "notFound", "Not Found");
    if (session.isCancelled) return new Response(null, { status: 499 });
    if (request.method === "DELETE") {
      session.isCancelled = true;
      session.pieces.length = 0;
      this.cancelledCount++;
      return new Response(null, { status: 499 });
    }
    if (request.method !== "PUT") throw new Refused(405, "methodNotAllowed", "Method Not Allowed");
    const header = request.headers.get("content-range") ?? "";
    const [, first, last, total] = /^bytes (?:(\d+)-(\d+)|\*)\/(\d+|\*)$/.exec(header) ?? [];
    if (total === undefined) throw invalid(`Failed to parse Content-Range header: ${header}`);
    const totalBytes = total === "*" ? null : Number(total);
    const { bytes: body, isWhole } = await received(request);
    if (first === undefined || last === undefined) {
      if (body.byteLength > 0) throw invalid("a question about the status has a body");
    } else {
      this.#take(session, body, { start: Number(first), end: Number(last) + 1, totalBytes, isWhole });
    }
    if (session.made === null && totalBytes !== null && session.bytes === totalBytes) this.#finish(session, request);
    if (session.made !== null) return Response.json(session.bucket.resourceOf(session.made));
    const range = session.bytes === 0 ? {} : { range: `bytes=0-${session.bytes - 1}` };
    return new Response(null, { status: 308, headers: range });
  }

  #take(
    session: Session,
    body: Buffer,
    chunk: {
      readonly start: number;
      readonly end: number;
      readonly totalBytes: number | null;
      readonly isWhole: boolean;
    },
  ): void {
    const { start, end, totalBytes } = chunk;
    if (session.made !== null) return;
    const sizeBytes = end - start;
    if (chunk.isWhole && body.byteLength !== sizeBytes)
      throw invalid(`${body.byteLength} bytes for a range of ${sizeBytes}`);
    if (totalBytes === null && sizeBytes % MULTIPLE_BYTES !== 0)
      throw invalid(`a chunk of ${sizeBytes} bytes, which is no multiple of 262144, and not the last one`);
    if (totalBytes !== null && end > totalBytes) throw invalid("more bytes than in all");
    if (start > session.bytes)
      throw invalid(`the upload offset is ${start} byte(s), which exceeds already uploaded size of ${session.bytes}`);
    if (chunk.isWhole) this.onChunk(body);
    const fresh = body.subarray(session.bytes - start);
    const isAll = chunk.isWhole && fresh.byteLength <= this.takesAtMost;
    const keptBytes = isAll ? fresh.byteLength : floored(Math.min(fresh.byteLength, this.takesAtMost));
    session.pieces.push(fresh.subarray(0, keptBytes));
    session.bytes += keptBytes;
  }

  #finish(session: Session, request: Request): void {
    const { bucket, name } = session;
    bucket.checkGeneration(name, session.ifGenerationMatch);
    const bytes = Buffer.concat(session.pieces);
    const wanted = /crc32c=([^,]+)/.exec(request.headers.get("x-goog-hash") ?? "")?.[1];
    const crc = crc32cBase64(bytes);
    if (wanted !== undefined && wanted !== crc)
      throw invalid(`Provided CRC32C "${wanted}" doesn't match calculated CRC32C "${crc}".`);
    session.made = bucket.put(name, bytes, session, crc);
    session.pieces.length = 0;
  }
}

function floored(bytes: number): number {
  return bytes - (bytes % MULTIPLE_BYTES);
}

/** As much of the body as came; a connection that breaks leaves the rest out. */
async function received(request: Request): Promise<{ readonly bytes: Buffer; readonly isWhole: boolean }> {
  const pieces: Uint8Array[] = [];
  try {
    for await (const piece of request.body ?? []) pieces.push(piece);
    return { bytes: Buffer.concat(pieces), isWhole: true };
  } catch {
    return { bytes: Buffer.concat(pieces), isWhole: false };
  }
}
