/* What adapter.c offers the other translation units. */
#ifndef HSMUX_ADAPTER_H
#define HSMUX_ADAPTER_H

#include <stddef.h>

#include "pkcs11.h"

/* F_C_Initialize is 0: the functions' places in CK_FUNCTION_LIST. */
#define FUNCTION(name, parameters, arguments) F_##name,
enum { HSMUX_P11_FUNCTIONS(FUNCTION) };
#undef FUNCTION

/* The vendor's functions, with C_Initialize and C_Finalize ours. */
extern CK_FUNCTION_LIST adapter_real;

/* One line on stderr. */
__attribute__((format(printf, 1, 2))) void adapter_say(const char *format, ...);

#endif
