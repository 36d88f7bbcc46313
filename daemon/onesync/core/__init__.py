"""Pure core: no input or output, no clock, no threads; time comes in as a number."""
