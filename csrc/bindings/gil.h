#pragma once

#include <cxxabi.h>
#include <pybind11/pybind11.h>
#include <unistd.h>

namespace fct::bindings {

// Gives the GIL away. When the interpreter has ended meanwhile, as it does under daemon threads, Pythons
// before 3.14 end the thread where it asks for the GIL, which unwinds it through frames that let nothing
// pass, and the process is aborted. Such a thread stays here instead, until the process is gone.
class GilReleased {
 public:
  GilReleased() : state_(PyEval_SaveThread()) {}
  ~GilReleased() {
    try {
      PyEval_RestoreThread(state_);
    } catch (abi::__forced_unwind&) {
      for (;;) pause();
    }
  }
  GilReleased(const GilReleased&) = delete;
  GilReleased& operator=(const GilReleased&) = delete;

 private:
  PyThreadState* state_;
};

}  // namespace fct::bindings
