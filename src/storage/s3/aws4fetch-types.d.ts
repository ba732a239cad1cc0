// aws4fetch's declarations name two types of the browser that bun-types has as parts of its own.
type HeadersInit = Bun.HeadersInit;
type BodyInit = Bun.BodyInit;
