// What linear layers by oneDNN share.
#pragma once

#include <algorithm>
#include <dnnl.hpp>
#include <new>
#include <string>
#include <vector>

#include "fct/error.h"
#include "linear_op.h"

namespace fct::cpu::onednn {

using Tag = dnnl::memory::format_tag;

inline const dnnl::engine& cpu() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

inline dnnl::primitive_attr attributes(Activation activation) {
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  attr.set_fpmath_mode(dnnl::fpmath_mode::strict);  // whatever the environment says: fp32 means fp32
  dnnl::post_ops post_ops;
  if (activation == Activation::kRelu) post_ops.append_eltwise(dnnl::algorithm::eltwise_relu, 0.f, 0.f);
  if (activation == Activation::kGelu) post_ops.append_eltwise(dnnl::algorithm::eltwise_gelu_erf, 0.f, 0.f);
  attr.set_post_ops(post_ops);
  return attr;
}

inline dnnl::memory floats(const std::vector<float>& values) {
  dnnl::memory kept({{static_cast<dnnl::memory::dim>(values.size())}, dnnl::memory::data_type::f32, Tag::a},
                    cpu());
  std::copy(values.begin(), values.end(), static_cast<float*>(kept.get_data_handle()));
  return kept;
}

inline std::string text(const dnnl::error& error, const char* what) {
  return std::string("oneDNN cannot ") + what + " a linear layer with " + onednn_instruction_set().name +
         ": " + error.message;
}

// What oneDNN throws is no std::exception's kind that anyone above knows.
template <typename Work>
auto translated(ErrorKind kind, const char* what, const Work& work) {
  try {
    return work();
  } catch (const dnnl::error& error) {
    if (error.status == dnnl_out_of_memory) throw std::bad_alloc();
    throw Error(kind, text(error, what));
  }
}

}  // namespace fct::cpu::onednn
