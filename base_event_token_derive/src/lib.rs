//! `#[derive(EventToken)]`: packs an enum into the 64 bits that epoll hands back with an event.
//!
//! The variant's index takes the low bits, as few as the number of variants needs; the variant's one field, if it
//! has any, takes the rest. What a field may be is decided by the trait `base::event_token::TokenField`, so that
//! type aliases work; a field that can't fit is a compile error.

use proc_macro2::TokenStream;
use quote::format_ident;
use quote::quote;
use syn::Data;
use syn::DeriveInput;
use syn::Error;
use syn::Fields;
use syn::Type;
use syn::Variant;
use syn::parse_macro_input;

/// Implements `base::EventToken` for an enum whose variants have no field, or one.
///
/// # Errors
/// A compile error for anything but an enum with variants, for generics, for a variant with more than one field, and
/// where the variant's index and its field need more than 64 bits together.
#[proc_macro_derive(EventToken)]
pub fn event_token(input: proc_macro::TokenStream) -> proc_macro::TokenStream {
    expand(&parse_macro_input!(input as DeriveInput))
        .unwrap_or_else(Error::into_compile_error)
        .into()
}

fn expand(input: &DeriveInput) -> syn::Result<TokenStream> {
    let Data::Enum(data) = &input.data else {
        return Err(Error::new_spanned(
            &input.ident,
            "EventToken is for enums only",
        ));
    };
    if data.variants.is_empty() {
        return Err(Error::new_spanned(
            &input.ident,
            "EventToken needs at least one variant",
        ));
    }
    if !input.generics.params.is_empty() {
        return Err(Error::new_spanned(
            &input.generics,
            "EventToken does not take generics",
        ));
    }

    let index_bits = usize::BITS - (data.variants.len() - 1).leading_zeros();
    let field_bits = u64::BITS - index_bits;
    let mut packing = Vec::new();
    let mut unpacking = Vec::new();
    let mut checks = Vec::new();
    for (variant, index) in data.variants.iter().zip(0u64..) {
        let name = &variant.ident;
        match field_type(variant)? {
            None => {
                packing.push(quote!(Self::#name { .. } => #index));
                unpacking.push(quote!(#index => Self::#name {}));
            }
            Some(ty) => {
                let member = member(variant);
                let bound = format_ident!("field");
                packing.push(quote! {
                    Self::#name { #member: #bound } =>
                        ::base::event_token::pack(#index, #index_bits, #bound)
                });
                unpacking.push(quote! {
                    #index => Self::#name { #member: ::base::event_token::unpack(#index_bits, data) }
                });
                checks.push(quote! {
                    const _: () = ::core::assert!(
                        <#ty as ::base::event_token::TokenField>::BITS <= #field_bits,
                        "the variant's index and its field do not fit into 64 bits",
                    );
                });
            }
        }
    }

    let name = &input.ident;
    Ok(quote! {
        #(#checks)*

        #[automatically_derived]
        impl ::base::EventToken for #name {
            fn as_raw_token(&self) -> u64 {
                match *self { #(#packing),* }
            }

            fn from_raw_token(data: u64) -> Self {
                match ::base::event_token::index(#index_bits, data) {
                    #(#unpacking,)*
                    index => ::core::unreachable!("no variant has the index {index}"),
                }
            }
        }
    })
}

/// Returns the type of the variant's only field, `None` where it has no field.
fn field_type(variant: &Variant) -> syn::Result<Option<&Type>> {
    let mut fields = variant.fields.iter();
    let first = fields.next();
    if fields.next().is_some() {
        return Err(Error::new_spanned(
            variant,
            "a variant of an EventToken has at most one field",
        ));
    }
    Ok(first.map(|field| &field.ty))
}

/// Returns how the variant's only field is written between braces: its name, or `0`.
fn member(variant: &Variant) -> TokenStream {
    match &variant.fields {
        Fields::Named(fields) => {
            let name = fields.named.first().and_then(|field| field.ident.as_ref());
            quote!(#name)
        }
        Fields::Unnamed(_) | Fields::Unit => quote!(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_refused(source: &str, reason: &str) {
        let input = syn::parse_str::<DeriveInput>(source).expect("the source is an item");
        let error = expand(&input).expect_err("the item is refused");
        assert_eq!(error.to_string(), reason);
    }

    #[test]
    fn struct_is_refused() {
        check_refused("struct Token(u32);", "EventToken is for enums only");
    }

    #[test]
    fn enum_without_variants_is_refused() {
        check_refused("enum Token {}", "EventToken needs at least one variant");
    }

    #[test]
    fn generic_enum_is_refused() {
        check_refused(
            "enum Token<T> { A(T) }",
            "EventToken does not take generics",
        );
    }

    #[test]
    fn variant_with_two_fields_is_refused() {
        check_refused(
            "enum Token { A(u8, u8) }",
            "a variant of an EventToken has at most one field",
        );
    }

    #[test]
    fn five_variants_take_three_bits() {
        let input = syn::parse_str::<DeriveInput>("enum Token { A, B(u32), C, D, E }")
            .expect("the source is an item");
        let expanded = expand(&input).expect("the enum is fine").to_string();
        assert!(
            expanded.contains("pack (1u64 , 3u32 , field)"),
            "{expanded}"
        );
    }
}
