# The CUDA part, libfct_cuda.so: a library of its own that the core loads on first use, so that one build serves
# machines with and without a driver. What schedules the work is in the core; this is what touches CUDA.
# Sets FCT_CUDA_BUILT.
set(FCT_CUBLAS_DIR "" CACHE PATH "Folder with include/ and lib/ of cuBLAS; empty: the toolkit's, else where PyPI's nvidia-cublas put it")
set(FCT_CUDA_BUILT OFF)

# cuBLAS comes with the toolkit or as a PyPI package, which has no libcublasLt.so: it is linked by its file.
function(fct_find_cublaslt)
  set(places "${FCT_CUBLAS_DIR}" ${CUDAToolkit_LIBRARY_ROOT} ${CUDAToolkit_TARGET_DIR})
  if(NOT FCT_CUBLAS_DIR)
    execute_process(
      COMMAND ${Python_EXECUTABLE} -c
              "import importlib.metadata as m; print(next(f.locate().resolve().parent.parent for f in m.files('nvidia-cublas') if f.name == 'cublasLt.h'))"
      OUTPUT_VARIABLE wheel OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    list(APPEND places "${wheel}")
  endif()
  unset(FCT_CUBLASLT_INCLUDE CACHE)
  unset(FCT_CUBLASLT_LIBRARY CACHE)
  find_path(FCT_CUBLASLT_INCLUDE cublasLt.h PATHS ${places} PATH_SUFFIXES include NO_DEFAULT_PATH)
  find_library(FCT_CUBLASLT_LIBRARY NAMES libcublasLt.so.13 libcublasLt.so.12 PATHS ${places}
               PATH_SUFFIXES lib lib64 NO_DEFAULT_PATH)
endfunction()

function(fct_find_cuda missing)
  if(CMAKE_VERSION VERSION_LESS 3.25.2)
    set(${missing} "CMake ${CMAKE_VERSION} does not know nvcc's C++20: 3.25.2 or newer is needed" PARENT_SCOPE)
    return()
  endif()
  include(CheckLanguage)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    set(${missing} "nvcc was not found" PARENT_SCOPE)
    return()
  endif()
  find_package(CUDAToolkit QUIET)
  fct_find_cublaslt()
  if(NOT CUDAToolkit_FOUND)
    set(${missing} "the CUDA toolkit of ${CMAKE_CUDA_COMPILER} was not found" PARENT_SCOPE)
  elseif(NOT FCT_CUBLASLT_INCLUDE OR NOT FCT_CUBLASLT_LIBRARY)
    set(${missing} "cublasLt.h or libcublasLt.so was not found (pip install nvidia-cublas)" PARENT_SCOPE)
  else()
    set(${missing} "" PARENT_SCOPE)
  endif()
endfunction()

if(FCT_CUDA)
  fct_find_cuda(FCT_CUDA_MISSING)
  if(NOT FCT_CUDA_MISSING)
    set(FCT_CUDA_BUILT ON)
  elseif(FCT_CUDA STREQUAL "AUTO")
    message(STATUS "Without the CUDA part: ${FCT_CUDA_MISSING}")
  else()
    message(FATAL_ERROR "FCT_CUDA=${FCT_CUDA}, but ${FCT_CUDA_MISSING}")
  endif()
endif()

if(FCT_CUDA_BUILT)
  message(STATUS "With the CUDA part: ${CMAKE_CUDA_COMPILER}, ${FCT_CUBLASLT_LIBRARY}")
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100 120)
  endif()
  enable_language(CUDA)
  set(CMAKE_CUDA_STANDARD 20)
  # Only cuBLAS's headers: beside them in the wheels' common folder may lie a newer runtime's, which must not
  # shadow the toolkit's.
  file(GLOB FCT_CUBLAS_HEADERS ${FCT_CUBLASLT_INCLUDE}/cublas*.h)
  file(COPY ${FCT_CUBLAS_HEADERS} DESTINATION ${CMAKE_CURRENT_BINARY_DIR}/cublas)

  file(GLOB FCT_CUDA_SOURCES CONFIGURE_DEPENDS csrc/cuda/nvidia/*.cpp csrc/cuda/nvidia/*.cu)
  add_library(fct_cuda MODULE ${FCT_CUDA_SOURCES})
  target_include_directories(fct_cuda PRIVATE csrc csrc/include)
  target_include_directories(fct_cuda SYSTEM PRIVATE ${CMAKE_CURRENT_BINARY_DIR}/cublas)
  target_link_libraries(fct_cuda PRIVATE CUDA::cudart_static ${FCT_CUBLASLT_LIBRARY})
  target_compile_options(fct_cuda PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wshadow>
                                          $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra --extended-lambda>)
  # cuBLASLt is found where pip puts it, beside the package, or where the loader looks anyway.
  set_target_properties(fct_cuda PROPERTIES CUDA_VISIBILITY_PRESET hidden BUILD_WITH_INSTALL_RPATH ON
                                            INSTALL_RPATH "$ORIGIN/../nvidia/cu13/lib")
  install(TARGETS fct_cuda LIBRARY DESTINATION fct_infer)
endif()
