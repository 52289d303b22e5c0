/* One fuzz target, `LLVMFuzzerTestOneInput`, and the inputs that the replaying driver starts from.
 *
 * An input is: operation 1 | size of the first column 2 | first column | second column. */
#ifndef HSMUX_TESTS_FUZZ_H
#define HSMUX_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>

enum { FUZZ_SEED_SIZE_MAX = 4096 };

int LLVMFuzzerInitialize(int *count, char ***words);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A well-formed input; the same number gives the same one. */
size_t fuzz_seed(uint64_t number, uint8_t *data);

#endif
