# Read by the build of llama-cpp-python right after its project(). What llama.cpp's own programs share is a library of its own, which the bindings
# never load; its sources take a good part of the time. The variable hides the cached one of that name, which the build sets in any case.
set(LLAMA_BUILD_COMMON OFF)

# Products that ggml computes a row and a column at a time, made several columns at once: kernels/products.cpp, which the linker puts before the function
# that ggml asks for each product.
function(corral_add_kernels)
  if(NOT TARGET ggml-cpu OR NOT GGML_LLAMAFILE OR NOT CMAKE_SYSTEM_NAME STREQUAL "Linux")
    return()
  endif()
  target_sources(ggml-cpu PRIVATE "${CORRAL_KERNELS}/products.cpp")
  target_link_options(ggml-cpu PRIVATE "LINKER:--wrap=llamafile_sgemm")
endfunction()
set(CORRAL_KERNELS "${CMAKE_CURRENT_LIST_DIR}/kernels")

# A second build of ggml's part for processors, under the same name in a folder of its own: for x86-64 with AVX-512 and its instructions for
# small integers (Ice Lake, Zen 4 and later). corral_server.engine.library says which of the two a process loads.
function(corral_add_avx512)
  if(NOT TARGET ggml-cpu OR GGML_NATIVE)
    return()
  endif()
  if(GGML_OPENMP)
    find_package(OpenMP REQUIRED) # what ggml found is known in its own folder only
  endif()
  get_target_property(folder ggml-cpu SOURCE_DIR)
  get_target_property(sources ggml-cpu SOURCES)
  list(TRANSFORM sources PREPEND "${folder}/" REGEX "^[^/]")
  add_library(ggml-cpu-avx512 SHARED ${sources})
  foreach(property COMPILE_DEFINITIONS COMPILE_FEATURES COMPILE_OPTIONS INCLUDE_DIRECTORIES LINK_LIBRARIES LINK_OPTIONS SOVERSION VERSION)
    get_target_property(value ggml-cpu ${property})
    if(NOT value MATCHES "-NOTFOUND$")
      set_target_properties(ggml-cpu-avx512 PROPERTIES ${property} "${value}")
    endif()
  endforeach()
  foreach(property COMPILE_DEFINITIONS COMPILE_OPTIONS) # of the whole folder
    get_property(value DIRECTORY "${folder}" PROPERTY ${property})
    set_property(TARGET ggml-cpu-avx512 APPEND PROPERTY ${property} ${value})
  endforeach()
  target_compile_options(ggml-cpu-avx512 PRIVATE
    -mavx512f -mavx512cd -mavx512vl -mavx512dq -mavx512bw -mavx512vbmi -mavx512vnni)
  target_compile_definitions(ggml-cpu-avx512 PRIVATE GGML_AVX512 GGML_AVX512_VBMI GGML_AVX512_VNNI)
  set_target_properties(ggml-cpu-avx512 PROPERTIES
    OUTPUT_NAME ggml-cpu
    LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/avx512"
    BUILD_WITH_INSTALL_RPATH TRUE
    INSTALL_RPATH "$ORIGIN/..")
  install(FILES "$<TARGET_FILE:ggml-cpu-avx512>" DESTINATION "${SKBUILD_PLATLIB_DIR}/llama_cpp/lib/avx512"
    RENAME "$<TARGET_SONAME_FILE_NAME:ggml-cpu-avx512>")
endfunction()

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|amd64|AMD64)$")
  cmake_language(DEFER CALL corral_add_kernels) # first: the other build takes them over
  cmake_language(DEFER CALL corral_add_avx512)
endif()
