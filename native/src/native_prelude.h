#include "hsmux_native.h"
