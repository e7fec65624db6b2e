// csrc/cuda/cublas_lt.h declares a part of cuBLASLt by hand; here the compiler compares it with the header.
#include <cublasLt.h>
#include <cuda/cublas_lt.h>

namespace lt = datagrad::lt;

static_assert(static_cast<int>(lt::Epilogue::relu_bias) == CUBLASLT_EPILOGUE_RELU_BIAS);
static_assert(static_cast<int>(lt::Epilogue::relu_aux_bias) == CUBLASLT_EPILOGUE_RELU_AUX_BIAS);
static_assert(static_cast<int>(lt::Epilogue::drelu) == CUBLASLT_EPILOGUE_DRELU);
static_assert(static_cast<int>(lt::Epilogue::drelu_bgrad) == CUBLASLT_EPILOGUE_DRELU_BGRAD);
static_assert(lt::kTransA == CUBLASLT_MATMUL_DESC_TRANSA && lt::kTransB == CUBLASLT_MATMUL_DESC_TRANSB);
static_assert(lt::kEpilogue == CUBLASLT_MATMUL_DESC_EPILOGUE && lt::kBiasPointer == CUBLASLT_MATMUL_DESC_BIAS_POINTER);
static_assert(lt::kAuxPointer == CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER && lt::kAuxLd == CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD);
static_assert(lt::kMaxWorkspace == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
static_assert(lt::kReductions == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK && CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE == 2);
static_assert(lt::kMinAlignment == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES);
static_assert(lt::kMinAlignment + 3 == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);
static_assert(lt::kFloat == CUDA_R_32F && lt::kHalf == CUDA_R_16F && lt::kBFloat16 == CUDA_R_16BF);
static_assert(lt::kComputeFloat == CUBLAS_COMPUTE_32F && lt::kComputeTf32 == CUBLAS_COMPUTE_32F_FAST_TF32);
static_assert(CUBLAS_OP_N == 0 && CUBLAS_OP_T == 1);
static_assert(sizeof(lt::Algorithm) == sizeof(cublasLtMatmulAlgo_t));
static_assert(sizeof(lt::Found) == sizeof(cublasLtMatmulHeuristicResult_t));
static_assert(offsetof(lt::Found, workspace) == offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize));
static_assert(offsetof(lt::Found, state) == offsetof(cublasLtMatmulHeuristicResult_t, state));
static_assert(sizeof(cublasStatus_t) == sizeof(int) && sizeof(cublasComputeType_t) == sizeof(int) && sizeof(cudaDataType) == sizeof(int));
