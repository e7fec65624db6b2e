// exp of a double without a branch, so that host loops over it vectorise. No torch header.
#pragma once

#include <math/scalar.h>

namespace datagrad::math {

inline double exp_branch_free(double x) { return exp(x); }

}  // namespace datagrad::math
