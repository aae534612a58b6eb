# Read by the build of llama-cpp-python right after its project(). What llama.cpp's own programs share is a library of its own, which the bindings
# never load; its sources take a good part of the time. The variable hides the cached one of that name, which the build sets in any case.
set(LLAMA_BUILD_COMMON OFF)
