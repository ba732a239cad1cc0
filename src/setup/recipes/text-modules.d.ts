declare module "*.recipe" {
  const text: string;
  export default text;
}
