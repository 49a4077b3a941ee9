#include <dnnl_version.h>

#include "registry.h"

#define FCT_TEXT_(x) #x
#define FCT_TEXT(x) FCT_TEXT_(x)

PYBIND11_MODULE(_core, m) {
  m.doc() = "Compiled core of fct_infer: fused transformations and the streaming pipeline.";
  m.attr("__version__") = FCT_VERSION;
  m.attr("onednn_version") =
      FCT_TEXT(DNNL_VERSION_MAJOR) "." FCT_TEXT(DNNL_VERSION_MINOR) "." FCT_TEXT(DNNL_VERSION_PATCH);
  fct::bindings::register_errors(m);
  fct::bindings::register_executable(m);
  fct::bindings::register_pipeline(m);
  fct::bindings::register_assign(m);
}
